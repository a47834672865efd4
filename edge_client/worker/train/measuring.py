# SPDX-License-Identifier: Apache-2.0
"""A node measures a published state on its held-out rows, before it trains from it.

What was measured is written down, so that a worker that is killed afterwards says the same numbers, and does not spend
the time again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge_client.worker.data.heldout import sampled
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, encoded_rows
from edge_client.worker.train.answered import Asked, Texts, answered, questions_of
from edge_client.worker.train.evaluate import (
    Metric,
    batch_of_tokens,
    compares_texts,
    node_metrics,
    scores_of,
    sums_of,
)
from edge_client.worker.train.replica import Replica
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import DataError, WorkerError
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan
from fedcore.worker.messages import MeasuredState

__all__ = ["HeldOut", "Measurer", "held_out_of"]


class _Kept(msgspec.Struct, frozen=True):
    """The last measurement, on disk."""

    key: str
    measurement: Measurement


@dataclass(frozen=True)
class HeldOut:
    """A node's rows to measure on.

    Attributes:
        encoded: As token ids; empty on a node without.
        examples: Rows that they were made of.
        longest: Tokens of the longest example that is trained on: what memory is planned for.
        metrics: What is measured beside accuracy and loss.
        asked: What the model answers, where one of these compares texts.
    """

    encoded: Sequence[Encoded]
    examples: int
    longest: int
    metrics: Mapping[str, Metric | None]
    asked: Asked = Asked()


def held_out_of(
    plan: Plan, examples: Sequence[Example], trained: Sequence[Encoded], task: TaskSection, tokenizer: Any
) -> HeldOut:
    """A node's rows to measure on; none where the plan does not ask.

    Args:
        plan: Any plan of the run.
        examples: Held-out rows.
        trained: What is trained on.
        task: Of the plan, cut to the length that this node trains with.
        tokenizer: The model's.

    Raises:
        ConfigError: A metric is not there on this node.
        DataError: A row cannot be encoded.
    """
    longest, evaluation = max((len(e.ids) for e in trained), default=0), plan.evaluation
    if evaluation is None or not examples:
        return HeldOut((), 0, longest, {})
    metrics = node_metrics(evaluation.metrics, plan.task)
    chosen = sampled(examples, evaluation.rows, evaluation.share_seed)
    rows, asked = encoded_rows(chosen, task, tokenizer), Asked()
    if compares_texts(metrics.values()):
        asked = questions_of(rows.firsts, task, tokenizer, evaluation.max_new_tokens)
    return HeldOut(rows.encoded, len(chosen), longest, metrics, asked)


class Measurer:
    """Measures a replica.

    Args:
        replica: The node's model.
        held_out: What it is measured on.
        path: Of the last measurement.
        run: The run's name.
        node: This node's.
        pad_id: Token that pads.
        torch_device: Where to compute.
        wanted: Asked before every batch; it raises where nobody waits any more.
    """

    def __init__(
        self,
        replica: Replica,
        held_out: HeldOut,
        path: Path,
        run: str,
        node: str,
        pad_id: int,
        torch_device: torch.device,
        wanted: Callable[[], object] = lambda: None,
    ) -> None:
        self._replica, self._held_out, self._path, self._run, self._node = replica, held_out, path, run, node
        self._pad_id, self._torch_device, self._wanted = pad_id, torch_device, wanted

    def measured(self, plan: Plan, memory: MemoryPlan, answers_at_once: int = 1) -> MeasuredState:
        """`measure`, with the time that it took."""
        started = time.monotonic()
        found = self.measure(plan, memory, answers_at_once)
        return MeasuredState(plan.version, found, time.monotonic() - started)

    def measure(self, plan: Plan, memory: MemoryPlan, answers_at_once: int = 1) -> Measurement | None:
        """Measure the state that a plan starts from; None without held-out rows.

        The replica then stands where the round starts.

        Args:
            plan: The round.
            memory: Of training. As many tokens at a time as a micro-batch may have: nothing is kept for a backward
                pass, so this needs less.
            answers_at_once: Answers side by side that there is memory for.

        Raises:
            ExactnessError: The replica does not hold the plan's version.
            WorkerError: A metric fails.
        """
        if not self._held_out.encoded:
            return None
        self._replica.become(self._run, self._node)
        self._replica.open(plan)
        key = self._key(plan)
        if (kept := self._kept()) is not None and kept.key == key:
            return kept.measurement
        # Longer rows than any that is trained on go alone.
        most_tokens = memory.micro_batch_size * self._held_out.longest
        encoded = self._held_out.encoded
        sizes = batch_of_tokens(most_tokens)
        scores = scores_of(
            self._replica.model, encoded, plan.task, self._pad_id, self._torch_device, sizes, self._wanted
        )
        try:
            sums = sums_of(scores, encoded, plan.task, self._held_out.metrics, lambda: self._answered(answers_at_once))
        except DataError as error:
            # Of a metric; the node's own data were read long ago.
            raise WorkerError(error.message, place=error.place, remedy=error.remedy) from error
        found = Measurement(version=plan.version, examples=self._held_out.examples, sums=sums)
        self._keep(_Kept(key, found))
        return found

    def _answered(self, at_once: int) -> Texts:
        # A compiler's memory is in no plan.
        asked, wanted = self._held_out.asked, self._wanted
        return answered(self._replica.model, asked, at_once=at_once, compiled=False, wanted=wanted)

    def _key(self, plan: Plan) -> str:
        """Whatever would make another measurement changes it."""
        what = self._run, self._node, plan.version, self._replica.digest(), plan.task, plan.evaluation
        rows = hashlib.sha256(repr([e.ids for e in self._held_out.encoded]).encode()).hexdigest()
        return hashlib.sha256(msgspec.msgpack.encode((*what, rows))).hexdigest()

    def _kept(self) -> _Kept | None:
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            # None yet, or torn by a power cut: it is measured again.
            return None

    def _keep(self, kept: _Kept) -> None:
        beside = self._path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(msgspec.msgpack.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
