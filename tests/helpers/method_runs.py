# SPDX-License-Identifier: Apache-2.0
"""Runs of every method without a wire: a coordinator's half, what is published, and replicas that train."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edge_client.process.measuring import Request
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.methods.artefact import ArtefactSources
from edge_client.worker.programs.measure import local_plan
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.fields.types import BaseKind
from fedcore.methods import server_half, settings_by_name
from fedcore.methods.fedavg import FedAvgSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.model.base import Base
from fedcore.model.snapshot import write_snapshot
from fedcore.model.state import ExactState, model_digest
from fedcore.model.update import WeightedUpdate, check_update
from fedcore.numbers.records import read_records
from fedcore.round.checksums import checksums
from fedcore.round.plan import ArtefactObject, Plan
from fedcore.weights.checkpoint import Checkpoint
from research.artefact import made_artefact

CPU = torch.device("cpu")
TASK = TaskSection(kind="causal-lm", max_length=24)
WHOLE = MemoryPlan(micro_batch_size=4)
METHODS = list(settings_by_name().values())
MOMENTS = ("reset", "carried", "averaged")
CODECS = ("float32", "bfloat16", "top-k")
# A method, and keys beside its defaults: choices that change what travels, or what an interval keeps.
Case = tuple[type[MethodSettings], dict[str, Any]]
CASES: list[Case] = [
    *((kind, {}) for kind in METHODS),
    *((FedKRSOSettings, {"num_seeds": 3, "moments": name}) for name in MOMENTS[1:]),
    (FedKRSOSettings, {"moments": "averaged", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "gaussian", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "coordinate", "schedule": "fresh"}),
    (FedKRSOSettings, {"projection": "orthonormal"}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4, "informed_share": 0.5}),
    (FedKRSOSettings, {"projection": "informed", "rank": 4, "num_seeds": 4, "moments": "carried"}),
    (FedKRSOSettings, {"published_bits": 11, "schedule": "fresh"}),
    *((FedAvgSettings, {"codec": codec}) for codec in CODECS),
]


def examples(node: int) -> list[Encoded]:
    return [
        Encoded(tuple((5 * i + (node + 3) * j) % 200 + 3 for j in range(10 + i)), None, None)
        for i in range(6 + 2 * node)
    ]


@dataclass
class Run:
    """A run's server half and what is published, without a wire."""

    settings: MethodSettings
    folder: Path
    own: Path
    kind: BaseKind = "int8"

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        plan = local_plan(
            self.folder,
            TASK,
            Request(model_folder="", task=TASK, batch_size=4, length=24, memory=WHOLE, rank=4, pool=3),
        )
        self.schema, self._plan = plan.model_schema, msgspec.structs.replace(plan, base_kind=self.kind)
        self.base = Base(Checkpoint(self.folder), self.schema, self.kind, self.own / "coordinator")
        self.half = server_half(self.settings)
        self.file = self.own / "artefact.bin"
        training = self.half.training(1, 5)
        sources = ArtefactSources(training=training, base=self.base, task=TASK, texts=examples(7), torch_device=CPU)
        made = made_artefact(self.file, self.settings, sources, 1024)
        self.artefact: Any = None if made is None else made.content
        self._object: ArtefactObject | None = None if made is None else made.object
        if made is not None:
            self.half = server_half(self.settings, made.object.manifest.sha256)
        self.base_digests = [self.base.digest()]
        self.state = ExactState.zero(self.half.training(1, 5), self.schema)
        self.published = [self.state.publish()]
        self.digests = [model_digest(self.base.digest(), self.published[0])]
        self.updates: dict[str, Path] = {}

    def plan(self, server_round: int) -> Plan:
        training = self.half.training(server_round, 5)
        if training.generation == self.base.generation + 1:
            self.base.merge(self.published[-1], training.generation)
            self.base_digests.append(self.base.digest())
            self.state = self.state.refreshed(training, self.schema)
        return msgspec.structs.replace(
            self._plan,
            round=server_round,
            version=server_round - 1,
            training=training,
            checksums=checksums(training, self.schema, self.artefact),
            artefact=self._object,
            base_digest=self.base_digests[training.generation],
            checkpoint_digest=self.base_digests[0],
        )

    def replica(self, name: str, server_round: int = 1) -> Replica:
        return Replica(self.plan(server_round), self.folder, self.own / name, CPU, torch.float32, artefact=self.file)

    def trainer(self, name: str, replica: Replica, data: list[Encoded], stop: int = 0) -> tuple[Trainer, list[int]]:
        done: list[int] = []

        def report(step: int, *rest: object) -> None:
            done.append(step)
            if step == stop:
                sys.exit()

        return Trainer(replica, data, self.own / name / "intervals", "r", name, 0, CPU, report, lambda: 0), done

    def train(self, name: str, replica: Replica, number: int, server_round: int = 1) -> WeightedUpdate:
        plan, path = self.plan(server_round), self.own / f"{name}-{server_round}.bin"
        self.trainer(name, replica, examples(number))[0].train(plan, (WHOLE,), path)
        checked = check_update(path, plan, "r", name)
        return WeightedUpdate(path, checked.header, checked.header.examples)

    def close(self, server_round: int, updates: list[WeightedUpdate]) -> None:
        self.state = self.half.aggregate(self.state, self.plan(server_round), updates)
        self.published.append(self.state.publish())
        self.digests.append(model_digest(self.base.digest(), self.published[-1]))

    def adopt(self, replica: Replica, version: int, *, whole: bool) -> None:
        path, before = self.own / "published state.bin", self.published[version - 1]
        whole = whole or before.seeds != self.published[version].seeds
        self.published[version].write(path, previous=None if whole else before)
        replica.adopt(
            path, self.half.training(version, 5).generation, "whole" if whole else "difference", self.digests[version]
        )

    def adopt_snapshot(self, replica: Replica, server_round: int) -> None:
        """What the coordinator would write as a round of a new generation opens."""
        plan, path = self.plan(server_round), self.own / "snapshot.bin"
        state = self.published[server_round - 1].refreshed(plan.training, self.schema)
        write_snapshot(path, self.base, state)
        replica.adopt(path, plan.training.generation, "snapshot", model_digest(self.base.digest(), state))


def name_of(case: Case) -> str:
    return "-".join([str(case[0].__struct_config__.tag), *map(str, case[1].values())])


def settings_of(case: Case) -> MethodSettings:
    return case[0](steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, **case[1])


def values_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {record.name: record.part.values() for record in read_records(path, kinds=("integers", "floats", "sparse"))}
