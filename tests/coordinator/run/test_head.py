# SPDX-License-Identifier: Apache-2.0
"""`[head]` of a job: what is refused, and what a round of another kind may not decide about the rounds after it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from head_jobs import BIAS, JOB, TASK, WEIGHT, read
from rich.console import Console

from coordinator.job import RoundSection
from coordinator.reports.summary import summary_of, write_report
from coordinator.rounds.events import NodeOnline, OpenRound, RoundPublished, UpdateAccepted
from coordinator.rounds.machine import RoundMachine
from coordinator.run.archive import Archive
from coordinator.run.keeping import norms_of
from coordinator.run.measuring import Measuring
from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder, stored_job, write_job
from coordinator.store.ledger import RoundRow, SqliteLedger
from coordinator.store.rows import NodesMeasured
from coordinator.store.view import RunView
from coordinator.terminal.page import rounds_table
from coordinator.terminal.story import Story
from fedcore.errors import ConfigError
from fedcore.methods import server_half
from fedcore.methods.beside.heads import longer_head
from fedcore.round.training import HeadTraining
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from fedcore.worker.messages import Described

_KEY = "a" * 64
SECURE = f"""{JOB}
[trust]
signing_key = "{_KEY}"
enrolled = "e"
authority_key = "{_KEY}"
[secure_aggregation]
[safety]
norm_ratio = 0
max_share_ratio = 0
"""
LABELS = 'kind = "text-classification"\nlabels = ["a", "b"]'


def test_a_job_says_what_its_head_begins_with(tmp_path: Path) -> None:
    job = read(tmp_path, JOB)
    first, second = (server_half(job.method, head=job.head).training(number, 0) for number in (1, 2))
    assert isinstance(first, HeadTraining) and second == first.then
    assert second.learning_rate == job.method.learning_rate
    slower = read(tmp_path, JOB.replace('"ridge"', '"ridge"\nrates = 0.5'))
    assert server_half(slower.method, head=slower.head).training(2, 0).learning_rate == 0.5 * job.method.learning_rate
    for rates in (0, 1.5):
        with pytest.raises(ConfigError, match=r"head.rates: rates is"):
            read(tmp_path, JOB.replace('"ridge"', f'"ridge"\nrates = {rates}'))
    assert read(tmp_path, JOB.replace('[head]\nstart = "ridge"\n', "")).head.start == "auto"


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


@pytest.mark.parametrize(
    ("text", "tensors", "start"),
    [
        (JOB, (WEIGHT, BIAS), "ridge"),
        (JOB, (TensorSpec("score.weight", (2, 2900), False),), "random"),
        (JOB, (TensorSpec("classifier.weight", (2, 8), True),), "random"),
        (JOB, (TensorSpec("pre_classifier.weight", (8, 8), False), WEIGHT), "random"),
        (JOB.replace("[round]", "[round]\nrounds = 1"), (WEIGHT, BIAS), "random"),
        (JOB.replace('"fedkrso"', '"fedsa-lora"'), (WEIGHT, BIAS), "random"),
        (JOB.replace('"fedkrso"', '"fed3r"'), (WEIGHT, BIAS), "random"),
        (JOB.replace("[broker]", '[safety]\nrule = "median"\n[broker]'), (WEIGHT, BIAS), "random"),
        (SECURE, (WEIGHT, BIAS), "ridge"),
        (SECURE.replace("gation]", "gation]\nfraction_bits = 19"), (WEIGHT, BIAS), "random"),
    ],
)
def test_a_head_begins_with_sums_wherever_it_can(
    tmp_path: Path, text: str, tensors: tuple[TensorSpec, ...], start: str
) -> None:
    job = read(tmp_path, text.replace('start = "ridge"', 'start = "auto"'))
    (tmp_path / "schema.json").write_bytes(msgspec.json.encode(Described(ModelSchema((), tensors), TASK)))
    folder = RunFolder(tmp_path)
    write_job(folder, job)
    ledger = SqliteLedger(tmp_path / "ledger")
    try:
        prepared = prepare(job, tmp_path, folder, ledger)
        assert prepared.job.head.start == start == stored_job(tmp_path).head.start
        # Two labels: every node pulls towards the one that it has most of.
        assert prepared.job.head.rates == (0.1 if start == "ridge" else None) == stored_job(tmp_path).head.rates
        rounds = job.round.rounds
        assert prepared.job.phases == ({1: "head", rounds: "head"} if start == "ridge" else {})
        # Rates fall to a third over the method's own rounds.
        own = rounds - len(prepared.job.phases)
        assert prepared.job.method.learning_rate_decay == pytest.approx((1 / 3) ** (1 / (own - 1)) if own > 1 else 1)
        assert stored_job(tmp_path).method == prepared.job.method
        head = longer_head(stored_job(tmp_path).head, 0, rounds, 50)
        longer = msgspec.structs.replace(job.round, rounds=50)
        again = msgspec.structs.replace(stored_job(tmp_path), round=longer, head=head)
        assert prepare(again, tmp_path, folder, ledger).job.method == prepared.job.method
        assert prepare(stored_job(tmp_path), tmp_path, folder, ledger).job.head.start == start
        # A run from before there was a choice has the ledger's facts, and a job that says nothing.
        assert prepare(job, tmp_path, folder, ledger).job.head.start == "random"
    finally:
        ledger.close()


def test_a_file_about_another_head_than_the_job_s_is_refused(tmp_path: Path) -> None:
    pooled = msgspec.structs.replace(TASK, pooling="mean")
    (tmp_path / "schema.json").write_bytes(msgspec.json.encode(Described(ModelSchema((), (WEIGHT,)), pooled)))
    for wanted, right in (("auto", True), ("mean", True), ("first", False), ("model", False)):
        job = read(tmp_path, JOB.replace(LABELS, f'{LABELS}\npooling = "{wanted}"'))
        ledger = SqliteLedger(tmp_path / wanted)
        try:
            if right:
                assert prepare(job, tmp_path, RunFolder(tmp_path), ledger).job.task.pooling == "mean"
            else:
                with pytest.raises(ConfigError, match=r"task.pooling: the job wants .*made for 'mean'.*--pooling"):
                    prepare(job, tmp_path, RunFolder(tmp_path), ledger)
        finally:
            ledger.close()


@pytest.mark.parametrize("on_nodes", [False, True])
def test_a_model_below_its_head_is_told_once(tmp_path: Path, on_nodes: bool) -> None:
    def row(number: int, accuracy: float) -> RoundRow:
        nodes = NodesMeasured(9, accuracy, 0.5, {}, {}) if on_nodes else None
        return RoundRow(number, ("a",), 0, 0, 1.0, 0.5, accuracy=None if on_nodes else accuracy, nodes=nodes)

    section = '[evaluation]\nwhere = "nodes"\n' if on_nodes else '[evaluation]\nsource = "dev.csv"\nevery = 5\n'
    job = read(tmp_path, JOB + section)
    ledger = SqliteLedger(tmp_path / "ledger")
    try:
        archive = Archive(RunFolder(tmp_path), ledger, 2, [], 1)
        measuring = Measuring(job, ledger, archive, RunView(job.run, "fedkrso", 6, phases=job.phases))
        for number, accuracy, words in (
            (1, 0.8, ""),
            (2, 0.8, ""),
            (3, 0.75, "round 3 is below frozen features: accuracy 0.750, 0.800 with the head alone (round 1)"),
            (4, 0.7, ""),
        ):
            measuring.take(row(number, accuracy))
            said = measuring.below()
            assert said.startswith(words) and bool(said) == bool(words) and "\n" not in said
        assert measuring._is_due(1), "what the others are compared with is measured"
    finally:
        ledger.close()
    random = SqliteLedger(tmp_path / "other")
    try:
        text = JOB.replace('"ridge"', '"ridge"\nagain = 2').replace("[round]\n", "[round]\nrounds = 7\n")
        again = read(tmp_path, text + section)
        measuring = Measuring(again, random, archive, RunView(job.run, "fedkrso", 7, phases=again.phases))
        for number, accuracy in ((1, 0.8), (2, 0.6), (3, 0.7), (4, 0.9), (6, 0.7)):
            measuring.take(row(number, accuracy))
            assert measuring.below() == "", "the next head is made of what these learn"
        measuring.take(row(7, 0.75))
        said = measuring.below()
        assert said.startswith("round 7 is below frozen features: accuracy 0.750, 0.800") and "again" not in said
        plain = read(tmp_path, JOB.replace("ridge", "random") + section)
        measuring = Measuring(plain, random, archive, RunView(job.run, "fedkrso", 6))
        for number in (1, 2):
            measuring.take(row(number, 1 / number))
            assert measuring.below() == ""
    finally:
        random.close()


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


@pytest.mark.parametrize(("untimed", "seconds"), [((), 60.0), ((1,), 3600.0)])
def test_the_time_of_a_head_s_round_makes_no_deadline(untimed: tuple[int, ...], seconds: float) -> None:
    """One second for the sums of a few rows would leave a minute for training."""
    machine = RoundMachine(RoundSection(), 0, untimed=frozenset(untimed))
    machine.handle(NodeOnline("a"), 10.0)
    machine.handle(UpdateAccepted("a", 1), 11.0)
    (opened,) = machine.handle(RoundPublished(1), 12.0)
    assert isinstance(opened, OpenRound) and opened.deadline_at == 12.0 + seconds
