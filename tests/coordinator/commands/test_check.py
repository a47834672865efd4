# SPDX-License-Identifier: Apache-2.0
"""`--check` of a job and of a node: what the run would end with is said before it begins, in the same words."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from coordinator.coordinator import Coordinator
from edge_client.client import Client
from edge_client.worker.programs.look import seen
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import ConfigError, DataError, FedkrsoError, ModelError
from fedcore.worker.looking import Look

JOB = """
run = "r"
[model]
folder = "{model}"
{trained}
[task]
kind = "text-classification"
labels = {labels}
[round]
{rounds}
[evaluation]
source = "{source}"
{columns}
[broker]
url = "mqtt://127.0.0.1:9"
insecure = true
"""
NODE = """
node = "n"
run = "r"
model_folder = "{model}"
memory_budget = "1 GiB"
[data]
source = "{source}"
{columns}
[broker]
url = "mqtt://127.0.0.1:9"
insecure = true
"""


def checked_job(tmp_path: Path, model: Path, **keys: str) -> tuple[str, ...]:
    words = {"trained": "", "labels": '["a", "b"]', "rounds": "", "source": "dev.csv", "columns": "", **keys}
    (tmp_path / "dev.xlsx").write_bytes(b"PK")
    (tmp_path / "dev.csv").write_text("text,label\ngood day,a\nbad day,b\n")
    (tmp_path / "job.toml").write_text(JOB.format(model=model, **words))
    return Coordinator.from_file(tmp_path / "job.toml").examine()


def checked_node(tmp_path: Path, model: Path, **keys: str) -> tuple[str, ...]:
    words = {"source": "rows.csv", "columns": "", **keys}
    (tmp_path / "rows.csv").write_text("text,label\ngood day,a\n,b\nbad day,b\n ,b\n")
    (tmp_path / "fine.csv").write_text("text,label\ngood day,a\n")
    (tmp_path / "node.toml").write_text(NODE.format(model=model, **words))
    return Client.from_file(tmp_path / "node.toml").examine()


def test_with_a_model_rows_are_read_with_its_tokenizer_and_patterns_must_match(
    tmp_path: Path, minilm_folder: Path
) -> None:
    """In this process: another one would load the libraries once more."""
    (tmp_path / "dev.csv").write_text("text,label\ngood day,a\nbad day,b\n")
    look = Look(
        rows={"evaluation": DataSection(source=str(tmp_path / "dev.csv"))},
        task=TaskSection(kind="text-classification", labels=("a", "b")),
        model_folder=str(minilm_folder),
        trained_tensors=("*.LayerNorm.*",),
        metrics=("f1", "json:dumps"),
    )
    metrics, rows, model = seen(look)
    assert (
        metrics == "metrics: json:dumps" and rows.endswith("dev.csv: 2 rows can be used") and "tensors train" in model
    )
    with pytest.raises(ModelError, match=r"model\.trained_tensors: no tensor matches '\*\.LayerNrom\.\*'"):
        list(seen(msgspec.structs.replace(look, trained_tensors=("*.LayerNrom.*",))))
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a " * 200}]})
    ]
    (tmp_path / "said.jsonl").write_text("\n".join(lines * 3))
    said = {"evaluation": DataSection(source=str(tmp_path / "said.jsonl"))}
    task = TaskSection(
        kind="instruction", max_length=64, template_text="{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"said\.jsonl:1: \d+ tokens, .* and 2 more rows are wrong: 2-3"):
        list(seen(msgspec.structs.replace(look, rows=said, task=task, metrics=(), trained_tensors=None)))


@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        ({"source": "dve.csv"}, DataError, ["dve.csv: no such file"]),
        ({"source": "dev.xlsx"}, DataError, ["dev.xlsx: a workbook, not text", "save its sheet as CSV"]),
        ({"columns": 'text = "txt"'}, DataError, ["dev.csv:2: data.text: no column 'txt'", "did you mean 'text'?", "1 more row"]),
        ({"labels": '["a", "c"]'}, DataError, ["dev.csv:3: label 'b' is not in task.labels"]),
        ({"labels": '["a", "b", "a"]'}, ConfigError, ["job.toml: task.labels: label 'a' is there twice"]),
        ({"labels": '["a"]'}, ConfigError, ["job.toml: task.labels", "needs two labels or more, there is 1"]),
        ({"labels": '"no_such_module:labels"'}, DataError, ["job.toml: task.labels: cannot import 'no_such_module'"]),
        ({"labels": '"json:lodas"'}, DataError, ["job.toml: task.labels: json has no function 'lodas'", "'loads'"]),
        ({"labels": '"os:getcwd"'}, DataError, ["job.toml: task.labels: os:getcwd gives str, not labels"]),
        ({"rounds": "min_nodes = 2\nquorum = 3"}, ConfigError, ["round.min_nodes: rounds begin with 2 nodes", "3 or more"]),
        ({"columns": 'metrics = ["json:dmups"]'}, DataError, ["job.toml: evaluation.metrics: json has no function 'dmups'"]),
    ],
)  # fmt: skip
def test_a_job_that_cannot_run_is_refused(
    tmp_path: Path, minilm_folder: Path, keys: dict[str, str], kind: type[FedkrsoError], words: list[str]
) -> None:
    with pytest.raises(kind) as found:
        checked_job(tmp_path, minilm_folder, **keys)
    assert [word for word in words if word not in found.value.one_line()] == [], found.value.one_line()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, ["rows.csv:3: text: the text is empty, and 1 more row is wrong: 5"]),
        ({"source": "row.csv"}, ["row.csv: no such file"]),
        ({"source": "rows.xlsx"}, ["rows.xlsx: no such file"]),
        ({"columns": 'text = "sentence"'}, ["rows.csv:2: data.text: no column 'sentence'"]),
        ({"source": "fine.csv", "columns": 'held_out = "rows.csv"'}, ["rows.csv:3: text: the text is empty"]),
    ],
)
def test_a_node_that_cannot_train_is_refused(
    tmp_path: Path, minilm_folder: Path, keys: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(DataError) as found:
        checked_node(tmp_path, minilm_folder, **keys)
    assert [word for word in words if word not in found.value.one_line()] == [], found.value.one_line()


def test_a_right_node_says_what_it_found(tmp_path: Path, minilm_folder: Path) -> None:
    data, budget = checked_node(tmp_path, minilm_folder, source="fine.csv")
    assert data.endswith("fine.csv: 1 rows can be read") and budget == "memory budget: 1024 MiB"
