# SPDX-License-Identifier: Apache-2.0
"""A start of one's own: what is written is right, and nothing of anybody's is written over."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from coordinator.job import Job
from edge_client.node import Node
from edge_client.worker.data.reading import load_examples
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError, ModelError
from fedkrso.commands.new import MODEL, NODES, new


def write(*arguments: object) -> None:
    new.main([*map(str, arguments)], standalone_mode=False)


def test_job_and_nodes_are_right_and_fit_together(tmp_path: Path, minilm_folder: Path) -> None:
    folder = tmp_path / "first"
    write(folder)
    job = load_config(folder / "job.toml", Job)
    nodes = [load_config(folder / f"{name}.toml", Node) for name in NODES]
    assert job.evaluation is not None and job.model.folder == MODEL and job.round.min_nodes == len(nodes)
    assert {node.run for node in nodes} == {job.run} and {node.broker.url for node in nodes} == {job.broker.url}
    held = load_examples(job.evaluation, job.task)
    parts = [load_examples(node.data, job.task) for node in nodes]
    assert [len(part) for part in parts] == [40] * 4 and len(held) == 40
    everything = [example.text for part in (held, *parts) for example in part]
    assert len(set(everything)) == len(everything) == 200
    commonest = [Counter(example.target for example in part).most_common(1)[0] for part in parts]
    assert len({target for target, _ in commonest}) == 4 and all(count >= 20 for _, count in commonest)


def test_the_sample_data_are_plain_tables(tmp_path: Path, minilm_folder: Path) -> None:
    write(tmp_path)
    for path in tmp_path.glob("*.csv"):
        with path.open(newline="") as file:
            assert all(row["text"].strip() == row["text"] and row["label"] for row in csv.DictReader(file))


def test_another_model_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'a "model"').mkdir()
    monkeypatch.chdir(tmp_path)
    write("first", "--model", 'a "model"')
    assert load_config(tmp_path / "first" / "job.toml", Job).model.folder == str(tmp_path / 'a "model"')
    with pytest.raises(ModelError, match="no such model folder"):
        write("second", "--model", "nowhere")
    assert not (tmp_path / "second").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, minilm_folder: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write(tmp_path)
    with pytest.raises(ConfigError, match="not an empty folder"):
        write(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
