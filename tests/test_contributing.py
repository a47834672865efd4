# SPDX-License-Identifier: Apache-2.0
"""The newcomer's page is true: every place that it names is there, and each way to add something is one that a test goes.

| section | the test that goes its way |
|---|---|
| method, task, metric, rule, device | `tests/outside/test_outside_package.py`, a package of its own in real processes |
| transport | `tests/contract/test_transport.py` |
| ledger | `tests/contract/test_ledger.py`, with a ledger written from the interface alone |
"""

from __future__ import annotations

import importlib
import re

import pytest

from tests.house import FLOORS, ROOT, floor_of

PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## A new (\w+)\n\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
CODE = re.compile(r"`([^`\n]+)`")


def test_each_thing_that_can_be_added_has_five_lines() -> None:
    assert SECTIONS.keys() >= {"method", "task", "device", "transport", "ledger", "metric", "rule"}
    for name, text in SECTIONS.items():
        assert re.findall(r"^(\d)\. ", text, re.MULTILINE) == list("12345"), name


@pytest.mark.parametrize("words", sorted({words for words in CODE.findall(PAGE) if "/" in words and " " not in words}))
def test_every_place_is_there(words: str) -> None:
    if "NAME" in words:
        # A word in capitals stands for any folder or file.
        assert list(ROOT.glob("/".join("*" if part.partition(".")[0].isupper() else part for part in words.split("/"))))
    elif not words.startswith("build/"):
        assert (ROOT / words).exists(), words


@pytest.mark.parametrize("words", sorted(set(re.findall(r"`@?(register_\w+)", PAGE))))
def test_every_decorator_is_at_the_front_door(words: str) -> None:
    assert callable(getattr(importlib.import_module("fedkrso"), words))


@pytest.mark.parametrize(
    "words",
    sorted({w for w in CODE.findall(PAGE) if re.fullmatch(r"(fedcore|devices|coordinator|edge_client)(\.\w+)+", w)}),
)
def test_every_dotted_name_is_there(words: str) -> None:
    module, _, name = words.rpartition(".")
    try:
        importlib.import_module(words)
    except ModuleNotFoundError:
        assert hasattr(importlib.import_module(module), name), words


def test_the_table_of_floors_is_what_the_command_prints() -> None:
    row = r"^\| `([\w/]+)` \| \d+, \d+, \d+ \| (\d+, \d+, \d+) \|$"
    table = dict(re.findall(row, PAGE, re.MULTILINE))
    assert table.keys() <= set(FLOORS) and len(table) == 5
    for name, now in table.items():
        floor = floor_of(name)
        assert f"{len(floor.rooms)}, {len(floor.arrows)}, {len(floor.circles())}" == now, name
