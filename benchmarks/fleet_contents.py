# SPDX-License-Identifier: Apache-2.0
"""What simulated nodes send: update files of a real shape, equal on every machine, and what the run must come to.

A round has `CONTENTS` different updates; node i sends number i modulo that, with its own header. So a node's file costs
no more than a copy, while the published state still depends on every single node: each counts with its own number of
examples. Sums are linear, so the model that a run of any size must end with is known from a few additions
(`expected_digest`): a lost or repeated update shows as another digest."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import msgspec
import numpy as np
from numpy.typing import NDArray

from fedcore.fields.types import Bits
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.state import ExactState, model_digest
from fedcore.model.update import write_update
from fedcore.numbers.accumulator import RowScaled, RunningSum
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.round.training import TENSOR_BITS, Training
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec, is_target

__all__ = ["CONTENTS", "Bodies", "examples_of", "expected_digest", "make_records", "schema_of"]

CONTENTS = 8


def schema_of(checkpoint: Checkpoint, labels: int) -> ModelSchema:
    """The trained parts of an encoder: every target layer of its checkpoint, and a new classification head."""
    entries = sorted(checkpoint.tensors.items())
    layers = tuple(
        LayerSpec(name.removesuffix(".weight"), entry.shape[0], entry.shape[1])
        for name, entry in entries
        if is_target(name, entry.shape)
    )
    width = int(checkpoint.config["hidden_size"])
    head = (TensorSpec("classifier.weight", (labels, width), False), TensorSpec("classifier.bias", (labels,), False))
    return ModelSchema(layers, head)


def examples_of(index: int) -> int:
    """How many examples node `index` says it has: 20 to 80, hardly ever the same for neighbours."""
    return 20 + 37 * index % 61


def make_records(schema: ModelSchema, training: Training, server_round: int, content: int) -> Iterator[Record]:
    """The records of a round's update number `content`, from the run's seed: full range, so that nothing can be
    compressed away."""
    random = np.random.default_rng([training.run_seed, server_round, content])
    for layer in schema.layers:
        yield _record(random, layer.name, (layer.rows, len(training.seeds) * training.rank), training.bits)
    for tensor in schema.tensors:
        yield _record(random, tensor.name, tensor.matrix, TENSOR_BITS)


def _record(random: np.random.Generator, name: str, shape: tuple[int, int], bits: Bits) -> Record:
    largest = 2 ** (bits - 1) - 1
    q: NDArray[np.int16] = random.integers(-largest, largest, shape, np.int16, endpoint=True)
    # Row maxima of 2**-8 to 2**-4, as after some steps at usual learning rates.
    exponent: NDArray[np.int8] = random.integers(-8 - bits, -4 - bits, shape[0], np.int8, endpoint=True)
    return Record(name, RowScaled(q, exponent), bits)


class Bodies:
    """Update files without their headers, made once in a process for each content of the present round."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._round = 0
        self._made: dict[int, bytes] = {}

    def write(self, path: Path, plan: Plan, header: UpdateHeader, content: int) -> None:
        """Write a node's update beside `path` and rename it there.

        Unlike a real worker's it is not flushed: one disk must not be asked for what 300 devices' disks do.
        """
        part = path.with_name(path.name + ".part")
        part.write_bytes(_packed(header) + self._body(plan, header, content))
        part.replace(path)

    def _body(self, plan: Plan, header: UpdateHeader, content: int) -> bytes:
        with self._lock:
            if plan.round != self._round:
                self._round, self._made = plan.round, {}
            if content not in self._made:
                with tempfile.TemporaryDirectory() as folder:
                    whole = Path(folder) / "whole"
                    write_update(whole, header, make_records(plan.model_schema, plan.training, plan.round, content))
                    self._made[content] = whole.read_bytes()[len(_packed(header)) :]
            return self._made[content]


def _packed(header: UpdateHeader) -> bytes:
    packed = msgpack.packb(msgspec.to_builtins(header))
    assert isinstance(packed, bytes)
    return packed


def expected_digest(
    settings: FedKRSOSettings, schema: ModelSchema, base_digest: str, run_seed: int, *, nodes: int, rounds: int
) -> str:
    """The model digest of a run in which every node's update was counted exactly once in every round."""
    half = server_half(settings)
    state = ExactState.zero(half.training(1, run_seed), schema)
    published = state.publish()
    for server_round in range(1, rounds + 1):
        training = half.training(server_round, run_seed)
        total = RunningSum(training.shapes(schema))
        for content in range(min(CONTENTS, nodes)):
            share = sum(examples_of(index) for index in range(content, nodes, CONTENTS))
            total.add_examples(share)
            for record in make_records(schema, training, server_round, content):
                total.add(record.name, record.part, share)
        state = state.after(total)
        published = state.publish()
    return model_digest(base_digest, published)
