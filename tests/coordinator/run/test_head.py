# SPDX-License-Identifier: Apache-2.0
"""`[head]` of a job: what is refused, and what a round of another kind may not decide about the rounds after it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from coordinator.job import Job, RoundSection
from coordinator.reports.summary import summary_of, write_report
from coordinator.rounds.events import NodeOnline, OpenRound, RoundPublished, UpdateAccepted
from coordinator.rounds.machine import RoundMachine
from coordinator.run.keeping import norms_of
from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow, SqliteLedger
from coordinator.store.view import RunView
from coordinator.terminal.page import rounds_table
from coordinator.terminal.story import Story
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError
from fedcore.methods import server_half
from fedcore.round.training import HeadTraining
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from fedcore.worker.messages import Described

JOB = """
run = "r"
[model]
folder = "model"
schema_file = "schema.json"
[task]
kind = "text-classification"
labels = ["a", "b"]
[method]
name = "fedkrso"
[head]
start = "ridge"
[round]
min_nodes = 3
quorum = 3
[broker]
url = "mqtts://localhost:8883"
"""
LABELS = 'kind = "text-classification"\nlabels = ["a", "b"]'
TASK = TaskSection(kind="text-classification", labels=("a", "b"))
WEIGHT, BIAS = TensorSpec("classifier.weight", (2, 8), False), TensorSpec("classifier.bias", (2,), False)


def read(tmp_path: Path, text: str) -> Job:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return load_config(path, Job)


def test_a_job_says_what_its_head_begins_with(tmp_path: Path) -> None:
    job = read(tmp_path, JOB)
    first, second = (server_half(job.method, head=job.head).training(number, 0) for number in (1, 2))
    assert isinstance(first, HeadTraining) and second == first.then
    assert (
        read(tmp_path, JOB.replace("ridge", "random")).head == read(tmp_path, JOB.replace("[head]\nstart", "# ")).head
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ridge", "rich", r"head.start"),
        (LABELS, 'kind = "causal-lm"', r"head.start: causal-lm has no new head that sums lead to \(write"),
        (LABELS, 'kind = "instruction"', r"instruction has no new head"),
        ('"fedkrso"', '"fedsa-lora"', r"every node keeps a head of its own"),
        ('"fedkrso"', '"fed3r"', r"fed3r is a head start already"),
        ("[broker]", '[safety]\nrule = "median"\n[broker]', r"safety.rule: 'median' means nothing for sums over rows"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        read(tmp_path, JOB.replace(old, new))
    assert "\n" not in found.value.one_line()


def test_the_method_of_heads_alone_needs_a_head_too(tmp_path: Path) -> None:
    alone = JOB.replace('"fedkrso"', '"fed3r"').replace('[head]\nstart = "ridge"\n', "")
    assert server_half(read(tmp_path, alone).method).training(1, 0).one_pass
    with pytest.raises(ConfigError, match=r"causal-lm has no new head"):
        read(tmp_path, alone.replace(LABELS, 'kind = "causal-lm"'))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((WEIGHT, BIAS), ""),
        ((WEIGHT,), ""),
        ((WEIGHT, BIAS, TensorSpec("pooler.dense.weight", (8, 8), True)), ""),
        ((TensorSpec("classifier.weight", (2, 8), True),), "gets no new head: its own is kept"),
        (
            (
                TensorSpec("pre_classifier.weight", (8, 8), False),
                TensorSpec("pre_classifier.bias", (8,), False),
                WEIGHT,
            ),
            "more than one linear layer: pre_classifier.bias, pre_classifier.weight beside classifier",
        ),
    ],
)
def test_a_head_that_is_no_linear_layer_is_refused_before_the_first_round(
    tmp_path: Path, tensors: tuple[TensorSpec, ...], words: str
) -> None:
    job = read(tmp_path, JOB)
    schema = ModelSchema((LayerSpec("l", 8, 8),), tensors)
    (tmp_path / "schema.json").write_bytes(msgspec.json.encode(Described(schema, TASK)))
    ledger = SqliteLedger(tmp_path / "ledger")
    try:
        if not words:
            assert prepare(job, tmp_path, RunFolder(tmp_path), ledger).schema == schema
            return
        with pytest.raises(ConfigError, match=words):
            prepare(job, tmp_path, RunFolder(tmp_path), ledger)
        # With a random head it is a model like others.
        random = msgspec.structs.replace(job, head=msgspec.structs.replace(job.head, start="random"))
        prepare(random, tmp_path, RunFolder(tmp_path), ledger)
    finally:
        ledger.close()


def test_norms_of_sums_say_nothing_of_norms_of_changes() -> None:
    rows = [RoundRow(n, ("a",), 0, 0, 0.0, 0.0, norms={"a": norm}) for n, norm in ((1, 20.0), (2, 0.01))]
    assert norms_of(rows, lambda number: number > 1) == [0.01] and norms_of(rows[:1], lambda number: number > 1) == []


def test_tables_name_the_phase(tmp_path: Path) -> None:
    job = read(tmp_path, JOB)
    rows = [RoundRow(n, ("a",), 0, 0, 1.0, 0.5) for n in (1, 2)]
    view = RunView(job.run, "fedkrso", 2, phases=job.phases, rows=rows)
    assert view.phases == {1: "head"} and RunView.decoded(view.encoded()) == view
    assert read(tmp_path, JOB.replace("ridge", "random")).phases == {}
    console = Console(width=120)
    with console.capture() as shown:
        console.print(rounds_table(rows, view.title))
    assert "1 (head)" in shown.get() and "2 (head)" not in shown.get()
    assert any(line.startswith("round 1 (head): published") for line in map(str, Story().lines(view)))
    summary = summary_of(view)
    assert [row["phase"] for row in summary["rounds"]] == ["head", ""]
    write_report(tmp_path / "report.html", summary)
    assert "<td>1 (head)</td>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("untimed", "seconds"), [(0, 60.0), (1, 3600.0)])
def test_the_time_of_a_head_s_round_makes_no_deadline(untimed: int, seconds: float) -> None:
    """One second for the sums of a few rows would leave a minute for training."""
    machine = RoundMachine(RoundSection(), 0, untimed=untimed)
    machine.handle(NodeOnline("a"), 10.0)
    machine.handle(UpdateAccepted("a", 1), 11.0)
    (opened,) = machine.handle(RoundPublished(1), 12.0)
    assert isinstance(opened, OpenRound) and opened.deadline_at == 12.0 + seconds
