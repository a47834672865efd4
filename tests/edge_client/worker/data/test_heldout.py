# SPDX-License-Identifier: Apache-2.0
"""Which rows a node holds out: by the row alone, for good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_client.worker.data.heldout import node_examples, place_of, sampled
from edge_client.worker.data.reading import Example
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError
from fedcore.round.measurement import NodeEvaluation

TASK = TaskSection(kind="text-classification", labels=("on", "off"))
ROWS = [{"text": f"lamp {i}", "label": "on" if i % 2 else "off"} for i in range(400)]
ASKED = NodeEvaluation(share=0.25)


def written(path: Path, rows: list[dict[str, str]]) -> DataSection:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSection(source=str(path))


def test_the_rule_is_written_down_and_never_changes() -> None:
    # Golden: a row that moved to the other side would be measured by a model that was trained on it.
    places = [place_of(Example("lamp on", None, 0), 0), place_of(Example("lamp on", "off", 0.5), 7)]
    assert [round(place, 6) for place in places] == [0.605273, 0.909809]


def test_a_row_stays_on_its_side_however_the_file_changes(tmp_path: Path) -> None:
    train, out = node_examples(written(tmp_path / "a.jsonl", ROWS), TASK, ASKED)
    assert len(train) + len(out) == len(ROWS) and 60 < len(out) < 140
    fewer_and_sorted = sorted(ROWS[:300], key=lambda row: row["text"])
    later_train, later_out = node_examples(written(tmp_path / "b.jsonl", fewer_and_sorted), TASK, ASKED)
    assert set(later_train) <= set(train) and set(later_out) <= set(out)
    # A larger share holds out what a smaller one did, and more; another seed holds out others.
    assert set(out) < set(node_examples(written(tmp_path / "a.jsonl", ROWS), TASK, NodeEvaluation(share=0.5))[1])
    other = NodeEvaluation(share=0.25, share_seed=1)
    assert set(out) != set(node_examples(written(tmp_path / "a.jsonl", ROWS), TASK, other)[1])


def test_equal_rows_are_on_one_side(tmp_path: Path) -> None:
    train, out = node_examples(written(tmp_path / "a.jsonl", ROWS * 2), TASK, ASKED)
    assert not set(train) & set(out) and len(train) + len(out) == 2 * len(ROWS)


def test_a_node_that_would_have_nothing_to_train_on_holds_nothing_out(tmp_path: Path) -> None:
    lone = min(ROWS, key=lambda row: place_of(Example(row["text"], None, ("on", "off").index(row["label"])), 0))
    train, out = node_examples(written(tmp_path / "a.jsonl", [lone]), TASK, ASKED)
    assert (len(train), len(out)) == (1, 0)


def test_a_file_of_held_out_rows_takes_the_place_of_the_share(tmp_path: Path) -> None:
    apart = written(tmp_path / "apart.jsonl", ROWS[:7]).source
    data = DataSection(source=written(tmp_path / "a.jsonl", ROWS[7:]).source, held_out=apart)
    train, out = node_examples(data, TASK, ASKED)
    assert (len(train), len(out)) == (len(ROWS) - 7, 7)
    # In a run that asks for nothing, the file is not read.
    assert node_examples(data, TASK, None)[1] == []
    with pytest.raises(DataError, match="no such file"):
        node_examples(DataSection(source=data.source, held_out=str(tmp_path / "gone.jsonl")), TASK, ASKED)


def test_a_smaller_sample_is_part_of_a_larger_one_and_in_order() -> None:
    rows = [Example(row["text"], None, 0) for row in ROWS]
    small, large = sampled(rows, 10, 3), sampled(rows, 40, 3)
    assert set(small) < set(large) and len(small) == 10 and len(large) == 40
    assert large == [row for row in rows if row in set(large)]
    assert sampled(rows, 0, 3) == rows == sampled(rows, 1000, 3)
