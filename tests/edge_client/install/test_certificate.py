# SPDX-License-Identifier: Apache-2.0
"""A node's certificate is judged before the broker does it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from coordinator.provisioning.provision import provision
from edge_client.install.certificate import client_certificate
from fedcore.errors import ConfigError

NOW = dt.datetime.now(dt.timezone.utc)


def fleet(folder: Path, now: dt.datetime = NOW, days: int = 30) -> Path:
    provision(folder, "reviews", ["kitchen", "garden"], hosts=("127.0.0.1",), now=now, days=days)
    return folder


def check(kitchen: Path, **others: Path) -> tuple[str, float]:
    files = {name: kitchen / f"{name}.{ending}" for name, ending in (("authority", "pem"), ("certificate", "pem"))}
    found = client_certificate(**{**files, "key": kitchen / "certificate.key", **others})
    return found.name, found.until_seconds


def test_a_good_one_says_whose_it_is_and_until_when(tmp_path: Path) -> None:
    name, until = check(fleet(tmp_path / "a") / "nodes/kitchen")
    assert name == "kitchen" and abs(until - (NOW + dt.timedelta(days=30)).timestamp()) < 2


@pytest.mark.parametrize(
    ("days_ago", "days", "match"),
    [(40, 30, "has run out"), (-40, 30, "is not valid yet")],
    ids=["run out", "not valid yet"],
)
def test_the_wrong_time(tmp_path: Path, days_ago: int, days: int, match: str) -> None:
    kitchen = fleet(tmp_path / "a", NOW - dt.timedelta(days=days_ago), days) / "nodes/kitchen"
    with pytest.raises(ConfigError, match=match):
        check(kitchen)


def test_files_of_different_folders(tmp_path: Path) -> None:
    one, other = (fleet(tmp_path / name) / "nodes/kitchen" for name in "ab")
    with pytest.raises(ConfigError, match="of another authority"):
        check(one, authority=other / "authority.pem")
    with pytest.raises(ConfigError, match="do not fit each other"):
        check(one, key=one.parent / "garden/certificate.key")
    with pytest.raises(ConfigError, match="cannot be read"):
        check(one, key=one / "nowhere.key")
    with pytest.raises(ConfigError, match="is not one for clients"):
        check(one, certificate=tmp_path / "a/broker/broker.pem", key=tmp_path / "a/broker/broker.key")
    (one / "certificate.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="do not fit each other"):
        check(one)
