# SPDX-License-Identifier: Apache-2.0
"""Which row goes where, and what is said of files that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.worker.data.reading import Example
from fedcore.data.splits import Split
from fedcore.errors import ConfigError, DataError, FedkrsoError
from research.data.tasks import TASKS, check_split, read_parts, task_by_name


def texts(rows: list[Example]) -> list[str]:
    return [f"{row.text}|{row.text_pair}|{row.target}" for row in rows]


@pytest.mark.parametrize("name", ["sst2", "stsb", "shakespeare"])
def test_no_row_is_in_two_parts(name: str, data_folder: Path) -> None:
    parts = read_parts(task_by_name(name), data_folder, 16, most_train=0, most_held=20)
    assert (len(parts.held), len(parts.tune)) == (
        20 if name != "shakespeare" else 19,
        20 if name != "shakespeare" else 19,
    )
    everything = sorted(texts([row.example for row in parts.train]) + texts(parts.held) + texts(parts.tune))
    rows, dev = task_by_name(name).read(data_folder, task_by_name(name).section(16))
    assert everything == sorted(texts([row.example for row in rows])) and texts(parts.dev) == texts(dev)
    again = read_parts(task_by_name(name), data_folder, 16, most_train=30, most_held=20)
    assert len(again.train) == 30 and again.train == parts.train[:30] and again.held == parts.held


def test_rows_are_dealt_by_label_score_or_speaker(data_folder: Path) -> None:
    groups = {
        name: {row.group for row in read_parts(task_by_name(name), data_folder, 16, most_train=0, most_held=5).train}
        for name in ("sst2", "stsb", "shakespeare")
    }
    assert groups["sst2"] == {0, 1} and groups["stsb"] == {0, 1, 2, 3, 4, 5}
    assert groups["shakespeare"] == {"ANNA", "BOB", "CARL", "DORA", "EVE", "FRED"}


def test_a_speech_is_its_words_without_the_speaker(data_folder: Path) -> None:
    parts = read_parts(task_by_name("shakespeare"), data_folder, 16, most_train=0, most_held=5)
    assert all(row.example.text.endswith(".") and ":" not in row.example.text for row in parts.train)
    assert len(parts.dev) == 15 and all(row.target is None for row in parts.dev)


def test_labels_that_nobody_names_are_those_of_the_training_file(tmp_path: Path) -> None:
    (tmp_path / "clinc150").mkdir()
    rows = [f"words {number},{'bca'[number % 3]}" for number in range(30)]
    for name in ("train", "test"):
        (tmp_path / f"clinc150/{name}.csv").write_text("\n".join(["text,intent", *rows]) + "\n")
    task = task_by_name("clinc150")
    parts = read_parts(task, tmp_path, 16, most_train=0, most_held=4, most_dev=5)
    assert parts.section.labels == ("a", "b", "c") and {row.group for row in parts.train} == {0, 1, 2}
    assert (len(parts.held), len(parts.train), len(parts.dev)) == (4, 22, 5)
    check_split(task, Split("labels"))
    with pytest.raises(ConfigError, match="stsb has no labels"):
        check_split(task_by_name("stsb"), Split("labels"))
    with pytest.raises(DataError, match="no such file"):
        read_parts(task, tmp_path / "elsewhere", 16, most_train=0, most_held=4)


def test_a_prompt_is_around_each_text_and_changes_nothing_else(data_folder: Path) -> None:
    plain, asked = (
        read_parts(task_by_name(name), data_folder, 16, most_train=9, most_held=5) for name in ("sst2", "sst2-prompt")
    )
    for one, other in ((plain.held, asked.held), (plain.dev, asked.dev), (plain.tune, asked.tune)):
        assert texts(other) == [f"Review: {row.text}\nSentiment:|{row.text_pair}|{row.target}" for row in one]
    assert [row.group for row in plain.train] == [row.group for row in asked.train] and asked.section == plain.section


def test_a_task_without_groups_has_no_natural_split() -> None:
    with pytest.raises(ConfigError, match="sst2 has no groups"):
        check_split(task_by_name("sst2"), Split("natural"))
    check_split(task_by_name("shakespeare"), Split("natural"))


@pytest.mark.parametrize(
    ("task", "place", "text", "said"),
    [
        ("sst2", "SST-2/train.tsv", None, "no such file"),
        ("sst2", "SST-2/train.tsv", "sentence\tlabel\n", "there are no rows"),
        ("sst2", "SST-2/train.tsv", "text\tlabel\nx\t1\n", "no column 'sentence'"),
        ("sst2", "SST-2/train.tsv", "sentence\tlabel\nx\t1\nx\t2\n", "label '2' is not in"),
        ("sst2", "SST-2/train.tsv", "sentence\tlabel\nx\t1\n", "1 rows are too few"),
        ("stsb", "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\tmany\n", "'many' is not a number"),
        ("shakespeare", "tinyshakespeare/input.txt", None, "cannot be read"),
        ("shakespeare", "tinyshakespeare/input.txt", "Words without a speaker\n", "0 speeches are too few"),
    ],
)
def test_wrong_files_are_refused_in_one_line(
    task: str, place: str, text: str | None, said: str, data_folder: Path, tmp_path: Path
) -> None:
    for path in data_folder.rglob("*.*"):
        own = tmp_path / path.relative_to(data_folder)
        own.parent.mkdir(exist_ok=True)
        own.write_bytes(path.read_bytes())
    if text is None:
        (tmp_path / place).unlink()
    else:
        (tmp_path / place).write_text(text)
    with pytest.raises(DataError, match=said) as refused:
        read_parts(task_by_name(task), tmp_path, 16, most_train=0, most_held=20)
    assert "\n" not in refused.value.one_line() and refused.value.place


def test_all_tasks_have_names_and_metrics_for_people() -> None:
    with pytest.raises(
        FedkrsoError, match="sst2, cola, mrpc, rte, stsb, qnli, qqp, mnli, clinc150, sst2-prompt, shakespeare"
    ):
        task_by_name("sst-2")
    names = {name: task.metric_name for name, task in TASKS.items()}
    assert names["cola"] == "Matthews correlation" and names["stsb"] == "Spearman correlation"
    # F1 is the larger class's own where a model says nothing else, so it stands beside what is compared.
    assert names["mrpc"] == names["qqp"] == "accuracy" and {
        name for name, task in TASKS.items() if task.beside == "f1"
    } == {"mrpc", "qqp"}
    assert [name for name, task in TASKS.items() if not task.higher_is_better] == ["shakespeare"]
