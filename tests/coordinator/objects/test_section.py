# SPDX-License-Identifier: Apache-2.0
"""What a job may say of an object store, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.objects.folder import FolderStore
from coordinator.objects.section import ObjectsSection
from coordinator.objects.shelf import open_store
from fedcore.errors import ConfigError


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("objects.url", {"url": "https://bucket"}),
        ("objects.url", {"url": "s3:///bucket"}),
        ("objects.url", {"url": "s3://key:secret@bucket"}),
        ("objects.url", {"url": "file://folder", "public": "https://x"}),
        ("objects.url", {"url": "file:///", "public": "https://x"}),
        ("objects.public", {"url": "file:///srv/objects"}),
        ("objects.uploads", {"url": "file:///srv/objects", "public": "https://files.example.org", "uploads": True}),
        ("objects.public", {"url": "file:///srv/objects", "public": "http://files.example.org"}),
        ("objects.endpoint", {"endpoint": "http://s3.example.org"}),
        ("objects.endpoint", {"endpoint": "https://s3.example.org/?a"}),
        ("objects.secret_file", {"key_id": "one"}),
        ("objects.key_id", {"secret_file": "file"}),
        ("objects.hold_seconds", {"hold_seconds": 59.0}),
        ("objects.hold_seconds", {"hold_seconds": 604_801.0}),
        ("objects.least", {"least": "large"}),
    ],
)
def test_what_is_no_store_is_refused_by_name(place: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ObjectsSection(**{"url": "s3://bucket", **wrong})
    assert caught.value.place == place and "secret@" not in caught.value.one_line()


def test_a_folder_that_is_served_and_a_bucket_are_stores(tmp_path: Path) -> None:
    section = ObjectsSection(url=f"file://{tmp_path}", public="https://files.example.org/fedkrso/", least="1 MiB")
    store = open_store(section)
    assert isinstance(store, FolderStore) and section.least_bytes == 2**20
    assert store.address("run/id/a", 60) == "https://files.example.org/fedkrso/run/id/a"
    assert ObjectsSection(url="s3://bucket/some/where", endpoint="http://[::1]:8333").least_bytes == 2**18
