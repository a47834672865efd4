# SPDX-License-Identifier: Apache-2.0
"""Runs of every method without a wire: the coordinator's round engine, and replicas that train."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from edge_client.worker.adapters.attaching import with_adapter
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.methods.artefact import ArtefactSources
from edge_client.worker.model.loading import describe
from edge_client.worker.programs.files import worked
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Hooks, Trainer
from fedcore.config.adapters import Adapter, PromptTuning
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.fields.types import BaseKind
from fedcore.methods import server_half, settings_by_name
from fedcore.methods.adapters.peft import PeftSettings
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.methods.prompts.fedbpt import FedBPTSettings
from fedcore.methods.prompts.fedpeptao import FedPepTAOSettings
from fedcore.methods.split import SplitSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.model.base import Base
from fedcore.model.snapshot import write_snapshot
from fedcore.model.state import ExactState, model_digest
from fedcore.model.update import WeightedUpdate
from fedcore.numbers.records import read_records
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from research.artefact import artefact_digest

CPU = torch.device("cpu")
_CHUNK_BYTES = 1024
TASK = TaskSection(kind="causal-lm", max_length=24)
HEAD_TASK = TaskSection(kind="text-classification", labels=("red", "green", "blue"), max_length=24)
WHOLE = MemoryPlan(micro_batch_size=4)
METHODS = list(settings_by_name().values())
MOMENTS = ("reset", "carried", "averaged", "rows")
CODECS = ("float32", "bfloat16", "top-k")
# A method, and keys beside its defaults: choices that change what travels, or what an interval keeps.
Case = tuple[type[MethodSettings], dict[str, Any]]
SMALL: dict[type[MethodSettings], dict[str, Any]] = {
    FedBPTSettings: {"intrinsic_dim": 12, "num_virtual_tokens": 4},
    SplitSettings: {"front": 1, "tokens": 1400},
}
CASES: list[Case] = [
    *((kind, SMALL.get(kind, {})) for kind in METHODS),
    *((FedKRSOSettings, {"num_seeds": 3, "moments": name}) for name in MOMENTS[1:]),
    (FedKRSOSettings, {"moments": "averaged", "schedule": "fresh"}),
    (FedKRSOSettings, {"moments": "rows", "schedule": "fresh", "order": "uniform"}),
    (FedKRSOSettings, {"projection": "gaussian", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "coordinate", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "orthonormal"}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4, "informed_share": 0.5}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4, "moments": "carried"}),
    (FedKRSOSettings, {"published_bits": 11, "schedule": "fresh"}),
    *((FedAvgSettings, {"codec": codec}) for codec in CODECS),
    (PeftSettings, {"peft": PromptTuning(num_virtual_tokens=3)}),
    (FedPepTAOSettings, {"shared_part": 1.0}),
]


def examples(node: int, task: TaskSection = TASK) -> list[Encoded]:
    """A node's own: more where rows have labels, of which a node has one more than the other."""
    rows = 6 + 2 * node if task is TASK else 32 + 2 * node
    return [
        Encoded(
            tuple((5 * i + (node + 3) * j) % 200 + 3 for j in range(10 + (i if task is TASK else i % 14))),
            None,
            None if task is TASK else i % (node + 1),
        )
        for i in range(rows)
    ]


@dataclass
class Run:
    """A run by the coordinator's round engine, without a wire."""

    settings: MethodSettings
    folder: Path
    own: Path
    kind: BaseKind = "int8"
    head: HeadSection = HeadSection()
    of_task: TaskSection | None = None

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        checkpoint, self.files = Checkpoint(self.folder), RunFolder(self.own)
        self.task = self.of_task or (HEAD_TASK if self.headed or self.head.start == "ridge" else TASK)
        self.schema = with_adapter(describe(checkpoint, self.task), self.folder, self.task, self.settings.adapter)
        sources = ArtefactSources(
            training=server_half(self.settings).training(1, 5),
            base=Base(checkpoint, self.schema, self.kind, self.files.base),
            task=self.task,
            texts=examples(7),
            torch_device=CPU,
        )
        self.own.mkdir(parents=True, exist_ok=True)
        artefact = artefact_digest(self.files.artefact, sources)
        self.half = server_half(self.settings, artefact, self.head)
        learning = Learning(
            method=self.settings,
            seed=5,
            task=self.task,
            base_kind=self.kind,
            schema=self.schema,
            model_folder=self.folder,
            artefact=artefact,
            head=self.head,
        )
        self.keeping = ScratchKeeping(self.files, keep_published=None)
        self.learning, self.model = learning, GlobalModel(learning, self.keeping, 0)
        self.artefact = self.model.artefact
        self.published = [self.model.published]
        self.digests = [model_digest(self.base.digest(), self.published[0])]
        self._plans: dict[int, Plan] = {}

    @property
    def only_head(self) -> bool:
        """Whether no layer learns anything: then there is a task with labels."""
        return isinstance(self.settings, Fed3RSettings)

    @property
    def headed(self) -> bool:
        """Whether the method has a task with labels, whatever the run begins with."""
        return self.only_head or bool(self.settings.needs_head)

    @property
    def beside(self) -> bool:
        """Whether what is learned stands beside the layers: then it is exported as an adapter, and is no change of a
        weight."""
        return server_half(self.settings).training(1, 5).learns.stands_beside

    def examples(self, node: int) -> list[Encoded]:
        """A node's own."""
        return examples(node, self.task)

    @property
    def base(self) -> Base:
        return self.model.base

    @property
    def state(self) -> ExactState:
        return self.model.state

    def plan(self, server_round: int) -> Plan:
        """A round's plan; asked for first, the round begins."""
        if server_round not in self._plans:
            self.model.begin(server_round, _CHUNK_BYTES, pytest.fail)
            self._plans[server_round] = self.model.plan(server_round, ("a", "b"), 0, _CHUNK_BYTES)
        return self._plans[server_round]

    def replica(self, name: str, server_round: int = 1) -> Replica:
        return Replica(
            self.plan(server_round), self.folder, self.own / name, CPU, torch.float32, artefact=self.files.artefact
        )

    def trainer(self, name: str, replica: Replica, data: list[Encoded], stop: int = 0) -> tuple[Trainer, list[int]]:
        done: list[int] = []

        def report(step: int, *rest: object) -> None:
            done.append(step)
            if step == stop:
                sys.exit()

        pad_id, intervals = replica.model.pad_id, self.own / name / "intervals"
        return Trainer(replica, data, intervals, "r", name, pad_id, CPU, Hooks(report)), done

    def train(self, name: str, replica: Replica, number: int, server_round: int = 1) -> WeightedUpdate:
        plan, path = self.plan(server_round), self.own / f"{name}-{server_round}.bin"
        self.trainer(name, replica, self.examples(number))[0].train(plan, (WHOLE,), path)
        return self.weighted(path, admit(path, plan, "r", name, SafetySection()).header)

    def weighted(self, path: Path, header: UpdateHeader) -> WeightedUpdate:
        """An update with what it counts."""
        return WeightedUpdate(path, header, 1 if self.settings.share == "uniform" else header.examples)

    def close(self, server_round: int, updates: list[WeightedUpdate]) -> None:
        rows = []
        for update in updates:
            file, size_bytes = str(update.path.relative_to(self.own)), update.path.stat().st_size
            rows.append(UpdateRow("", file, size_bytes, update.header, clip=update.clip))
        plan = self.plan(server_round)
        order = self.model.order(plan, rows)
        if order is not None:
            # In this process: one with torch of its own takes seconds to start.
            worked(order.command)
        closed = self.model.close(plan, rows, _CHUNK_BYTES, order)
        self.model.publish(closed.objects, closed.row)
        self.published.append(self.model.published)
        self.digests.append(closed.objects[0].digest)

    def adopt(self, replica: Replica, version: int, *, whole: bool) -> None:
        obj = self.keeping.objects.get((version, "difference"))
        if whole or obj is None:
            obj = self.keeping.objects[version, "whole"]
        replica.adopt(self.files.published_state(version, obj.kind), obj.generation, obj.kind, obj.digest)

    def adopt_snapshot(self, replica: Replica, server_round: int) -> None:
        """What the coordinator would write as a round of a new generation opens."""
        plan, path = self.plan(server_round), self.own / "snapshot.bin"
        state = self.model.start_state(plan.training)
        write_snapshot(path, self.base, state)
        replica.adopt(path, plan.training.generation, "snapshot", model_digest(self.base.digest(), state))


def name_of(case: Case) -> str:
    words = (value.name if isinstance(value, Adapter) else str(value) for value in case[1].values())
    return "-".join([str(case[0].__struct_config__.tag), *words])


def settings_of(case: Case) -> MethodSettings:
    return case[0](steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, **case[1])


def values_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {record.name: record.part.values() for record in read_records(path, kinds=("integers", "floats", "sparse"))}
