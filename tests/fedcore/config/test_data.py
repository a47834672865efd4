# SPDX-License-Identifier: Apache-2.0
"""Data as a program has it becomes a section that a worker process reads to the same rows."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client.worker.data.sources import rows_of
from fedcore.config.data import data_section
from fedcore.config.sections import DataSection
from fedcore.errors import DataError

ROWS = [{"text": "a", "label": "x"}, {"text": "b\nc", "label": "y"}]


def read(section: DataSection) -> list[dict[str, Any]]:
    return [dict(row) for _, row in rows_of(section)]


def spoken(count: int = 2) -> Iterator[dict[str, str]]:
    yield from ROWS[:count]


@pytest.mark.parametrize(
    "data",
    [ROWS, tuple(ROWS), iter(ROWS), spoken(), functools.partial(spoken, 2)],
    ids=["list", "tuple", "iterator", "generator", "function"],
)
def test_rows_are_read_as_they_were_given(tmp_path: Path, data: object) -> None:
    section = data_section(data, None, tmp_path / "node" / "data.jsonl")
    assert read(section) == ROWS and section.format == "jsonl"
    assert (tmp_path / "node" / "data.jsonl").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["data.jsonl"]


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["text", "label"]), st.text(), min_size=1), min_size=1, max_size=8)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_any_text_comes_back(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    if any("\ud800" <= c <= "\udfff" for row in rows for text in row.values() for c in text):
        with pytest.raises(DataError, match="row 1|row"):
            data_section(rows, None, tmp_path / "d.jsonl")
        return
    section = data_section(rows, None, tmp_path / "d.jsonl")
    assert [json.loads(line) for line in Path(section.source).read_text().split("\n")[:-1]] == rows


def test_a_path_a_name_a_section_and_a_function_stay_what_they_are(tmp_path: Path) -> None:
    given = DataSection(source="", text="review", label="stars", arguments={"count": 1})
    kept = tmp_path / "d.jsonl"
    path = data_section(tmp_path / "x.csv", given, kept)
    assert (path.source, path.text, path.label) == (str(tmp_path / "x.csv"), "review", "stars")
    assert data_section("my.module:rows", given, kept).source == "my.module:rows"
    assert data_section(DataSection(source="a.tsv"), given, kept) == DataSection(source="a.tsv")
    function = data_section(json.loads, given, kept)
    assert (function.source, function.arguments) == ("json:loads", {"count": 1})
    # Nobody else can import this one: it is called here, with the section's arguments.
    local = lambda count: ROWS[:count]  # noqa: E731
    assert read(data_section(local, given, kept)) == ROWS[:1]
    assert not (tmp_path / "d.jsonl.new").exists()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "there are no rows"),
        (3, "int is no data"),
        (["text"], "row 1: str is no row"),
        ([{"text": "a"}, {"text": object()}], "row 2: it cannot be written"),
    ],
)
def test_what_is_no_data_is_said_with_its_row_and_leaves_nothing(tmp_path: Path, data: object, match: str) -> None:
    kept = tmp_path / "d.jsonl"
    kept.write_text("before")
    with pytest.raises(DataError, match=match):
        data_section(data, None, kept)
    assert kept.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]
