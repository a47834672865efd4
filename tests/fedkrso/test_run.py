# SPDX-License-Identifier: Apache-2.0
"""A run led and taken part in from Python: real broker, real workers, rows that only this program has."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import torch
from made_runs import fedkrso
from workshop import Workshop

from coordinator.job import EvaluationSection
from coordinator.run import evaluator
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.system.locks import owned
from fedkrso import (
    Client,
    ConfigError,
    Coordinator,
    HeadSection,
    Job,
    Line,
    LocalBroker,
    ModelSection,
    Result,
    RoundRow,
    RoundSection,
    RunError,
    TaskSection,
)

pytestmark = pytest.mark.usefixtures("quick_workers")

TASK = TaskSection(kind="text-classification", labels=("left", "right"), max_length=16)
# A decay that is left out follows from the number of rounds.
METHOD = FedKRSOSettings(rank=2, num_seeds=2, interval_steps=2, steps=4, batch_size=4, learning_rate_decay=0.9)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker"), ["coordinator", "home-0", "home-1"]) as broker:
        yield broker


def rows(workshop: Workshop, index: int) -> Iterator[dict[str, str]]:
    with workshop.texts(index).open() as file:
        yield from csv.DictReader(file)


def job(
    workshop: Workshop,
    broker: LocalBroker,
    run: str,
    rounds: int = 2,
    head: HeadSection = HeadSection(start="random"),  # noqa: B008
) -> Job:
    return Job(
        run=run,
        model=ModelSection(folder=str(workshop.model)),
        task=TASK,
        method=METHOD,
        round=RoundSection(rounds=rounds, min_nodes=2, quorum=2, deadline_seconds=120.0),
        head=head,
        broker=broker.section("coordinator"),
    )


def client(workshop: Workshop, broker: LocalBroker, run: str, index: int, folder: Path, **options: object) -> Client:
    return Client(
        f"home-{index}",
        run=run,
        model_folder=str(workshop.model),
        broker=msgspec.to_builtins(broker.section(f"home-{index}")),
        folder=str(folder / f"home-{index}"),
        memory_budget="3 GiB",
        threads=1,
        compute_dtype="float32",
        data=list(rows(workshop, index)),
        **options,  # type: ignore[arg-type]
    )


def whole_run(
    workshop: Workshop, broker: LocalBroker, run: str, folder: Path, **options: object
) -> tuple[Result, list[RoundRow]]:
    told: list[RoundRow] = []
    said: list[Line] = []
    homes = [client(workshop, broker, run, index, folder, on_event=said.append, **options) for index in range(2)]
    leader = Coordinator(
        job(workshop, broker, run), runs=folder / "runs", evaluation=rows(workshop, 2), on_round=told.append
    )
    with leader, homes[0], homes[1]:
        result = leader.run()
        assert "stay" in options or all(home.wait(120) for home in homes)
    assert {"connected", "loaded", "trained", "committed"} <= {line.event for line in said}
    return result, told


def test_two_clients_and_a_coordinator_in_one_program(workshop: Workshop, broker: LocalBroker, tmp_path: Path) -> None:
    result, told = whole_run(workshop, broker, "front", tmp_path)
    assert result.finished and [row.round for row in told] == [row.round for row in result.rounds] == [1, 2]
    assert all(row.accuracy is not None for row in told) and result.accuracy == told[-1].accuracy
    assert {node["digest"] for node in result.summary["nodes"].values()} == {result.digest} and len(result.digest) == 64
    assert result.report.exists()
    kept = tmp_path / "home-0" / "data.jsonl"
    assert kept.stat().st_mode & 0o077 == 0 and len(kept.read_text().splitlines()) == 24

    # What can be pruned is in nobody's way: all that follows works without it.
    said = fedkrso("runs", "prune", "front", "--runs", tmp_path / "runs", "--yes")
    assert said.returncode == 0 and "updates" in said.stdout, said
    assert fedkrso("runs", "prune", "--runs", tmp_path / "runs", "--yes").stdout == "nothing to delete\n"

    # The model loads where models are loaded, and is the run's.
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(result.export(tmp_path / "tuned"))
    assert model.config.id2label == {0: "left", 1: "right"}
    with pytest.raises(ConfigError, match="the folder is not empty"):
        result.export(tmp_path / "tuned")

    # So does what was learned alone, on the checkpoint that the run began with: the same logits.
    from peft import PeftModel
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(workshop.model, num_labels=2)
    plain = AutoModelForSequenceClassification.from_pretrained(workshop.model, config=config).eval()
    ids = torch.arange(4, 20).reshape(2, 8)
    before = plain(ids).logits
    tuned = PeftModel.from_pretrained(plain, result.export_adapter(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = model.eval()(ids).logits
        torch.testing.assert_close(tuned(ids).logits, expected, rtol=1e-5, atol=1e-6)
    assert (before - expected).abs().max() > 1e-3, "something was learned"
    with pytest.raises(RunError, match="run 'front' is already there"):
        Coordinator(job(workshop, broker, "front"), runs=tmp_path / "runs").run()


def test_a_run_that_was_stopped_goes_on_where_it_was(workshop: Workshop, broker: LocalBroker, tmp_path: Path) -> None:
    homes = [client(workshop, broker, "halted", index, tmp_path) for index in range(2)]
    leader = Coordinator(job(workshop, broker, "halted"), runs=tmp_path / "runs", on_round=lambda row: leader.stop())
    with homes[0], homes[1]:
        halted = leader.run()
        assert not halted.finished and [row.round for row in halted.rounds] == [1]
        result = Coordinator.resume("halted", runs=tmp_path / "runs").run()
        assert all(home.wait(120) for home in homes)
    assert result.finished and len(result.rounds) == 2
    with pytest.raises(RunError, match="run 'halted' is finished"):
        Coordinator.resume("halted", runs=tmp_path / "runs").run()
    assert json.loads(result.folder.summary.read_text()) == result.summary, "nothing was changed"


@pytest.mark.slow
def test_a_finished_run_goes_on_for_more_rounds_as_if_it_had_had_them_from_the_start(
    workshop: Workshop, broker: LocalBroker, tmp_path: Path
) -> None:
    def led(leader: Coordinator, at: LocalBroker, folder: Path) -> Result:
        homes = [client(workshop, at, "longer", index, folder, stay=True) for index in range(2)]
        with leader, homes[0], homes[1]:
            return leader.run()

    runs = tmp_path / "runs"
    first = led(Coordinator(job(workshop, broker, "longer"), runs=runs), broker, tmp_path)
    with pytest.raises(RunError, match="it has 2 rounds already"):
        Coordinator.resume("longer", runs=runs, rounds=2).run()
    assert first.finished and len(first.rounds) == 2
    assert fedkrso("runs", "prune", "longer", "--runs", runs, "--yes").returncode == 0
    more = led(Coordinator.resume("longer", runs=runs, rounds=3), broker, tmp_path)
    assert more.finished and [row.round for row in more.rounds] == [1, 2, 3] and more.digest != first.digest
    assert {node["digest"] for node in more.summary["nodes"].values()} == {more.digest}
    with LocalBroker(tmp_path / "broker", ["coordinator", "home-0", "home-1"]) as other:
        straight = led(
            Coordinator(job(workshop, other, "longer", 3), runs=tmp_path / "other" / "runs"), other, tmp_path / "other"
        )
    assert straight.digest == more.digest


class Led(NamedTuple):
    """A run that two homes took part in to its end, all with its digest; and which of its rounds were a head's."""

    result: Result
    heads: list[int]


def led(leader: Coordinator, workshop: Workshop, broker: LocalBroker, run: str, folder: Path) -> Led:
    homes = [client(workshop, broker, run, index, folder) for index in range(2)]
    with leader, homes[0], homes[1]:
        result = leader.run()
        assert all(home.wait(120) for home in homes)
    assert {node["digest"] for node in result.summary["nodes"].values()} == {result.digest}
    heads = [number for number, row in enumerate(result.summary["rounds"], 1) if row["phase"] == "head"]
    return Led(result, heads)


@pytest.mark.slow
def test_a_run_that_a_head_ended_goes_on_and_ends_with_one(
    workshop: Workshop, broker: LocalBroker, tmp_path: Path
) -> None:
    wanted, runs = job(workshop, broker, "ended", 5, HeadSection(start="ridge")), tmp_path / "runs"
    where = workshop, broker, "ended"
    assert led(Coordinator(wanted, runs=runs), *where, tmp_path).heads == [1, 5]
    more = led(Coordinator.resume("ended", runs=runs, rounds=7), *where, tmp_path)
    assert more.result.finished and more.heads == [1, 5, 7]
    named = job(workshop, broker, "ended", 7, HeadSection(start="ridge", again=(5, 7)))
    straight = led(Coordinator(named, runs=tmp_path / "straight" / "runs"), *where, tmp_path / "straight")
    assert straight.heads == [1, 5, 7] and straight.result.digest == more.result.digest


@pytest.mark.slow
def test_a_run_that_brings_nothing_better_ends_with_a_head_and_not_without_one(
    workshop: Workshop, broker: LocalBroker, tmp_path: Path
) -> None:
    def made(again: tuple[int, ...], rounds: int, runs: Path, **changes: object) -> Coordinator:
        wanted = job(workshop, broker, "patient", rounds, HeadSection(start="ridge", again=again))
        # Loss rises where rates are far too large, so that what follows on the head is worse.
        wild = msgspec.structs.replace(METHOD, learning_rate=1.0, tensor_learning_rate=1.0)
        section = EvaluationSection(source="given", best_by="loss", **changes)  # type: ignore[arg-type]
        wanted = msgspec.structs.replace(wanted, method=wild, evaluation=section)
        return Coordinator(wanted, runs=runs, evaluation=rows(workshop, 2))

    where = workshop, broker, "patient"
    early, heads = led(made((9,), 9, tmp_path / "runs", stop_after=1), *where, tmp_path)
    assert early.finished and early.summary["stopped_early"] and heads == [1, 4] and len(early.rounds) == 4
    straight, heads = led(made((4,), 4, tmp_path / "straight" / "runs"), *where, tmp_path / "straight")
    assert heads == [1, 4] and straight.digest == early.digest and not straight.summary["stopped_early"]
    more, heads = led(Coordinator.resume("patient", runs=tmp_path / "runs", rounds=6), *where, tmp_path)
    assert more.finished and heads == [1, 4, 6] and not more.summary["stopped_early"]


def test_nodes_serve_run_after_run_from_the_same_folders(
    workshop: Workshop, broker: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, _ = whole_run(workshop, broker, "again", tmp_path)
    # From here on a new process measures each state, as where rounds are long: it finds the same.
    monkeypatch.setattr(evaluator, "_IDLE_STARTS", 0.0)
    # The same name, then another, with the same job and data: what was kept of a run before is in no round of these.
    # Who does not stay leaves at what the broker still has of the run before: that it is finished.
    (tmp_path / "runs").rename(tmp_path / "earlier")
    again, _ = whole_run(workshop, broker, "again", tmp_path, stay=True)
    other, _ = whole_run(workshop, broker, "other", tmp_path)
    for result in (again, other):
        assert [(row.participants, row.loss, row.accuracy) for row in result.rounds] == [
            (row.participants, row.loss, row.accuracy) for row in fresh.rounds
        ]
        assert result.digest == fresh.digest


def test_a_folder_has_one_owner(workshop: Workshop, broker: LocalBroker, tmp_path: Path) -> None:
    second = client(workshop, broker, "front", 0, tmp_path)
    with (
        owned(tmp_path / "home-0", "node other of run r", remedy="wait"),
        pytest.raises(RunError, match="node other of"),
    ):
        second.run()


def test_wrong_calls_are_one_line_with_a_remedy(workshop: Workshop, broker: LocalBroker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'memory_buget' \(did you mean 'memory_budget'\?\)"):
        Client("a", run="r", model_folder="m", broker={"url": "mqtts://h"}, data=[], memory_buget="1 GiB")
    with pytest.raises(ConfigError, match="'data' is missing"):
        Client("a", run="r", model_folder="m", broker={"url": "mqtts://h"})
    with pytest.raises(RunError, match="no run 'none'"):
        Coordinator.resume("none", runs=tmp_path)
    leader = Coordinator(job(workshop, broker, "later"), runs=tmp_path)
    assert not (tmp_path / "later").exists(), "nothing is on disk before it runs"
    with pytest.raises(RunError, match="has not begun"):
        from coordinator.run.control import Pause

        leader.command(Pause())
