# SPDX-License-Identifier: Apache-2.0
"""One run of the experiment in one process: many clients, one after the other, on one shared base model.

What a wire would carry is made and read as it would be there: updates and outcomes are the real files with their real sizes, checked,
summed and published by the coordinator's own code, adopted by the clients' own. Only the sockets are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoTokenizer

from coordinator.files import load_state, save_state
from edge_client.worker.evaluate import evaluate
from edge_client.worker.fused import fuse
from edge_client.worker.highwater import begin_peak, peak_bytes
from edge_client.worker.model import describe
from edge_client.worker.replica import Replica
from edge_client.worker.tasks import Encoded, encode
from edge_client.worker.trainer import Trainer
from examples.paper.splits import Split, deal
from examples.paper.tasks import GlueTask, Parts, class_of
from fedcore.base import Base
from fedcore.checkpoint import Checkpoint
from fedcore.memoryplan import MemoryPlan
from fedcore.methods import AnySettings, server_half
from fedcore.plan import Plan
from fedcore.projection import checksums
from fedcore.state import ExactState, PublishedState, model_digest
from fedcore.training import AnyTraining
from fedcore.types import BaseKind
from fedcore.update import WeightedUpdate, check_update

__all__ = ["Experiment", "Row", "Setup"]

_LEAST_EXAMPLES = 8


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is; two runs of equal setup give equal rows but for times."""

    label: str
    """The method with its options, as the tables name it."""
    method: AnySettings
    task: str
    split: str
    seed: int
    rounds: int = 10
    clients: int = 10
    max_length: int = 64
    most_train: int = 4000
    most_held: int = 2000
    base: BaseKind = "int8"
    micro_batch_size: int = 32
    tune: bool = False
    """Measure on the tuning rows alone: for choosing a learning rate."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A round of a run. Bytes are of all clients together, since the run began."""

    label: str
    task: str
    split: str
    seed: int
    round: int
    dev: float | None
    """The task's metric on the development set; None in a run for tuning."""
    held: float
    """The task's metric on rows of the training file that were held out, or on the tuning rows."""
    loss: float
    """On the same rows as `held`."""
    metrics: dict[str, float]
    train_loss: float
    uplink_bytes: int
    downlink_bytes: int
    peak_bytes: int | None
    """Highest resident memory of the process in the round."""
    seconds: float
    """Of training alone, all clients, this round."""
    examples: int
    digest: str


@dataclass
class _Client:
    name: str
    encoded: list[Encoded]


class Experiment:
    """A run.

    Args:
        setup: What it is.
        task: Its task.
        parts: The task's rows.
        model_folder: Checkpoint.
        folder: Of this run: state of the last round, and scratch.
        torch_device: Where to compute.
        compute_dtype: dtype of the products.
    """

    def __init__(
        self,
        setup: Setup,
        task: GlueTask,
        parts: Parts,
        split: Split,
        model_folder: Path,
        folder: Path,
        torch_device: torch.device,
        compute_dtype: torch.dtype,
    ) -> None:
        self._setup, self._task, self._folder, self._torch_device = setup, task, folder, torch_device
        self._section = task.section(setup.max_length)
        self._model_folder = model_folder
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        dealt = deal([class_of(row) for row in parts.train], setup.clients, split, setup.seed, least=_LEAST_EXAMPLES)
        self._clients = [
            _Client(f"client-{number}", encode([parts.train[index] for index in part], self._section, tokenizer))
            for number, part in enumerate(dealt)
        ]
        self._held = encode(parts.tune if setup.tune else parts.held, self._section, tokenizer)
        self._dev = [] if setup.tune else encode(parts.dev, self._section, tokenizer)
        self._half = server_half(setup.method)
        self._schema = describe(Checkpoint(model_folder), self._section)
        self._base = Base(Checkpoint(model_folder), self._schema, setup.base, folder / "base")
        first = self._plan(1)
        self._replica = Replica(first, model_folder, folder / "replica", torch_device, compute_dtype)
        model: Any = self._replica.model
        fuse(model)
        self._pad_id = int(model.config.pad_token_id or 0)
        self._state = ExactState.zero(first.training, self._schema)
        self._sent = {"up": 0, "down": 0}

    def rows(self, done: Sequence[Row] = ()) -> Iterator[Row]:
        """Train what is left of the run; a row for each round.

        Args:
            done: Rows of earlier rounds, from the same folder.
        """
        if done:
            self._resume(done[-1])
        for server_round in range(len(done) + 1, self._setup.rounds + 1):
            yield self._round(server_round)

    def _resume(self, last: Row) -> None:
        self._state = load_state(self._folder / f"state-{last.round}.npz")
        self._sent = {"up": last.uplink_bytes, "down": last.downlink_bytes}
        self._adopt(self._state.publish(), None, self._plan(last.round).training)

    def _round(self, server_round: int) -> Row:
        self._fold(server_round)
        plan, started = self._plan(server_round), time.monotonic()
        begin_peak()
        updates, losses = [], []
        for client in self._clients:
            path = self._folder / f"{client.name}.bin"
            ladder = (MemoryPlan(micro_batch_size=self._setup.micro_batch_size),)
            self._trainer(client).train(plan, ladder, path)
            header = check_update(path, plan, "paper", client.name).header
            weight = header.examples if plan.training.share == "examples" else 1
            updates.append(WeightedUpdate(path, header, weight))
            losses.append(header.loss)
            self._sent["up"] += path.stat().st_size
        seconds, peak = time.monotonic() - started, peak_bytes()
        before = self._state.publish()
        self._state = self._half.aggregate(self._state, plan, updates)
        published = self._state.publish()
        size_bytes = self._adopt(published, before if before.version and before.seeds == published.seeds else None, plan.training)
        self._sent["down"] += (size_bytes + len(msgspec.msgpack.encode(plan))) * len(self._clients)
        save_state(self._folder / f"state-{server_round}.npz", self._state)
        (self._folder / f"state-{server_round - 1}.npz").unlink(missing_ok=True)
        held, loss, metrics = self._measured(self._held)
        dev, _, dev_metrics = self._measured(self._dev) if self._dev else (None, 0.0, {})
        return Row(
            label=self._setup.label,
            task=self._setup.task,
            split=self._setup.split,
            seed=self._setup.seed,
            round=server_round,
            dev=dev,
            held=held,
            loss=loss,
            metrics={f"held_{name}": value for name, value in metrics.items()}
            | {f"dev_{name}": value for name, value in dev_metrics.items()},
            train_loss=sum(losses) / len(losses),
            uplink_bytes=self._sent["up"],
            downlink_bytes=self._sent["down"],
            peak_bytes=peak,
            seconds=seconds,
            examples=sum(update.header.examples for update in updates),
            digest=self._replica.digest(),
        )

    def _fold(self, server_round: int) -> None:
        """Where seeds change, fold what was learned into the coordinator's base; the clients' replica folds by itself."""
        training = self._half.training(server_round, self._setup.seed)
        if training.generation != self._base.generation:
            self._base.fold(self._state.publish(), training.generation)
        if training.seeds != self._state.seeds:
            self._state = self._state.refreshed(training, self._schema)

    def _adopt(self, published: PublishedState, previous: PublishedState | None, training: AnyTraining) -> int:
        """Have the replica take an outcome from a file; the file's size, of the smaller kind."""
        path = self._folder / "outcome.bin"
        published.write(path, previous=previous)
        digest = model_digest(self._replica.base.digest(), published)
        self._replica.adopt(path, training.generation, "whole" if previous is None else "difference", digest)
        return path.stat().st_size

    def _measured(self, encoded: Sequence[Encoded]) -> tuple[float, float, dict[str, float]]:
        accuracy, loss, metrics = evaluate(self._replica.model, encoded, self._section, self._pad_id, self._torch_device)
        metrics = {"accuracy": accuracy, **metrics}
        return metrics[self._task.metric], loss, metrics

    def _trainer(self, client: _Client) -> Trainer:
        def report(*_: Any) -> None:
            pass

        own = self._folder / "intervals"
        return Trainer(self._replica, client.encoded, own, "paper", client.name, self._pad_id, self._torch_device, report, lambda: 0)

    def _plan(self, server_round: int) -> Plan:
        training = self._half.training(server_round, self._setup.seed)
        return Plan(
            round=server_round,
            phase="train",
            cohort=tuple(client.name for client in self._clients),
            deadline_at=0,
            task=self._section,
            base_kind=self._setup.base,
            base_digest=self._base.digest(),
            model_schema=self._schema,
            checksums=checksums(training, self._schema),
            training=training,
            version=server_round - 1,
            chunk_bytes=262_144,
            objects=(),
        )
