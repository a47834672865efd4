# SPDX-License-Identifier: Apache-2.0
"""A run's artefact at the coordinator: made once, found again as it was, and never another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.job import Job
from coordinator.run import prepare as preparing
from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from fedcore.errors import RunError
from fedcore.system.durable import sha256_of
from fedcore.weights.schema import LayerSpec, ModelSchema
from fedcore.worker.messages import ArtefactMade, Command, Described, Event, MakeArtefact

SCHEMA = ModelSchema((LayerSpec("layer", 4, 8),), ())
Prepare = Callable[..., str]


class Worker:
    """In place of a worker process: describes the model, and writes what it is told to as the artefact."""

    def __init__(self) -> None:
        self.content, self.made, self.told = b"rows", list[MakeArtefact](), list[str]()

    def ask(self, command: Command, log: Path, timeout_seconds: float = 300.0) -> Event:
        if not isinstance(command, MakeArtefact):
            return Described(SCHEMA, command.task)  # type: ignore[union-attr]
        # A pipe carries it, so it must be readable at the other end.
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=Command) == command
        self.made.append(command)
        Path(command.path).write_bytes(self.content)
        return ArtefactMade(1, 1)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    made = Worker()
    monkeypatch.setattr(preparing, "ask_worker", made.ask)
    return made


@pytest.fixture
def prepared(worker: Worker, tmp_path: Path) -> Iterator[Prepare]:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")

    def begin(**method: Any) -> str:
        fields = {
            "run": "r",
            "model": {"folder": "m"},
            "task": {"kind": "text-classification", "labels": ["a", "b"]},
            "method": {"name": "fedkrso", **method},
            "broker": {"url": "mqtts://broker:8883"},
        }
        if method:
            fields["calibration"] = {"source": "texts.tsv", "rows": 7}
        job = msgspec.convert(fields, Job)
        return prepare(job, Path("m"), RunFolder(tmp_path), ledger, worker.told.append).artefact

    yield begin
    ledger.close()


def test_a_method_that_asks_for_none_has_none_made(prepared: Prepare, worker: Worker) -> None:
    assert prepared() == "" and not worker.made


def test_it_is_made_once_of_the_first_round_and_the_calibration_text(
    prepared: Prepare, worker: Worker, tmp_path: Path
) -> None:
    made = [prepared(projection="informed") for _ in range(2)]
    assert made == [sha256_of(RunFolder(tmp_path).artefact)] * 2
    (command,) = worker.made
    assert [line.split(",")[0] for line in worker.told] == [
        "looking at the model",
        "making the run's artefact (informed rows)",
    ]
    assert command.data is not None and (command.data.source, command.rows) == ("texts.tsv", 7)
    assert command.model_schema == SCHEMA and command.training.artefact_kind is not None


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")])
def test_a_file_that_was_lost_or_damaged_is_made_again(
    damage: Callable[[Path], object], prepared: Prepare, worker: Worker, tmp_path: Path
) -> None:
    first = prepared(projection="informed")
    damage(RunFolder(tmp_path).artefact)
    assert prepared(projection="informed") == first and len(worker.made) == 2


def test_a_run_does_not_go_on_with_another_one(prepared: Prepare, worker: Worker, tmp_path: Path) -> None:
    first = prepared(projection="informed")
    RunFolder(tmp_path).artefact.unlink()
    worker.content = b"as another machine computes them"
    for _ in range(2):
        with pytest.raises(RunError, match=r"artefact \(informed rows\) is not the one .* a node's artefact\.bin"):
            prepared(projection="informed")
    # Put back from a copy.
    RunFolder(tmp_path).artefact.write_bytes(b"rows")
    assert prepared(projection="informed") == first
