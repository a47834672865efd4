# SPDX-License-Identifier: Apache-2.0
"""Whoever changes the bytes of a format has to raise its version: else two sides of different age meet and neither says
what is wrong."""

from __future__ import annotations

import json

import pytest

from fedcore.fields.formats import SPOKEN, disagreement
from tests.golden.formats import GOLDEN, found


def test_every_format_has_the_bytes_that_its_version_had() -> None:
    now, golden = found(), json.loads(GOLDEN.read_text(encoding="utf-8"))
    for name, format_now in now.items():
        if format_now["version"] == golden[name]["version"]:
            changed = {key for key, value in format_now["samples"].items() if golden[name]["samples"].get(key) != value}
            assert not changed, f"the bytes of {name} changed ({changed}): raise its version in the same commit"
        assert format_now == golden[name], f"{name} has another version: python -m tests.golden.formats"


@pytest.mark.parametrize(
    ("node", "coordinator", "words"),
    [
        ({"protocol": 4}, {"protocol": 5}, "node speaks protocol 4, coordinator 5: upgrade fedkrso on the node"),
        (
            {**SPOKEN, "update": 9},
            SPOKEN,
            "node writes update 9, coordinator {update}: upgrade fedkrso on the coordinator",
        ),
        ({}, SPOKEN, "node speaks protocol 0, coordinator {protocol}: upgrade fedkrso on the node"),
        ({**SPOKEN, "more": 1}, SPOKEN, "node writes more 1, coordinator 0: upgrade fedkrso on the coordinator"),
    ],
)
def test_who_has_to_be_upgraded_is_said_by_name(node: dict[str, int], coordinator: dict[str, int], words: str) -> None:
    assert disagreement(node, coordinator) == words.format(**SPOKEN)
