# SPDX-License-Identifier: Apache-2.0
"""A job's chat template, read where the job is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcore.config.sections import TaskSection
from fedcore.config.templates import with_template
from fedcore.errors import ConfigError


def test_the_plan_gets_the_text_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}")
    found = with_template(TaskSection(kind="instruction", template=str(path), learn="last"))
    assert found == TaskSection(kind="instruction", template_text="{{ messages }}", learn="last")
    assert with_template(found) is found


@pytest.mark.parametrize(
    ("data", "words"),
    [(None, "cannot be read"), (b"\xff", "is not UTF-8"), (b" \n", "is empty"), (b"a" * 100_001, "has 100001 bytes")],
)
def test_a_file_that_is_no_template_is_named(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "chat.jinja"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"task.template: .*chat.jinja {words}"):
        with_template(TaskSection(kind="instruction", template=str(path)))
