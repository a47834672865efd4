# SPDX-License-Identifier: Apache-2.0
"""How fast a round's updates become a mean, from files and already unpacked, beside a float32 sum of the same shape in
NumPy, and what memory sums take; and what rules that look at all participants at once cost beside the mean of the same
files."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fedcore.config.sections import TaskSection
from fedcore.fields.types import Bits
from fedcore.methods.fedkrso import FedKRSO, FedKRSOSettings
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate, read_together, write_update
from fedcore.numbers.accumulator import RowScaled, RunningSum, Share, quantise_rows
from fedcore.numbers.records import Record
from fedcore.numbers.rules import Mean, rule_of
from fedcore.registry import RULES
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.schema import LayerSpec, ModelSchema

__all__ = ["rows", "rule_rows"]

# Rows and K r columns like those of one block of a 1 B Llama at rank 8 with 8 seeds.
_SHAPES = {"attention": (8192, 64), "mlp": (18432, 64)}
_ELEMENTS = sum(rows * columns for rows, columns in _SHAPES.values())
_PARTICIPANTS = (2, 10, 50)
_BY_RULES = (3, 10, 30)
_SETTINGS = FedKRSOSettings(rank=8, num_seeds=8, projection="signs")
_SCHEMA = ModelSchema(tuple(LayerSpec(name, shape[0], 2048) for name, shape in _SHAPES.items()), ())
_TRIM = 0.2
# Other files than these are no other work.
_FILES = 10


def rows(bits: tuple[Bits, ...] = (4, 8, 16)) -> Iterator[dict[str, Any]]:
    """One row for each number of participants and precision; single-threaded, and the time is a processor's: an update
    a participant from its file into the next state, the mean and all; the sum alone, of parts that are unpacked; and a
    float32 sum in NumPy."""
    generator = np.random.default_rng(0)
    values = {name: generator.normal(size=shape).astype(np.float32) * 0.01 for name, shape in _SHAPES.items()}
    for precision in bits:
        method = FedKRSO(msgspec.structs.replace(_SETTINGS, bits=precision))
        plan = _plan(method)
        parts = {name: _as_unpacked(quantise_rows(array, precision)) for name, array in values.items()}
        with tempfile.TemporaryDirectory(prefix="fedkrso-bench-") as folder:
            files = [_written(Path(folder), number, plan) for number in range(_FILES)]
            zero, together = ExactState.zero(plan.training, _SCHEMA), read_together(plan)
            for participants in _PARTICIPANTS:
                updates = [files[number % _FILES] for number in range(participants)]
                yield {
                    "participants": participants,
                    "bits": precision,
                    "from_files_per_second": _rate(participants, lambda: method.aggregate(zero, plan, updates)),  # noqa: B023 (called at once)
                    "elements_per_second": _rate(participants, lambda: _summed(parts, participants, together)),  # noqa: B023
                    "float_elements_per_second": _rate(participants, lambda: _summed_floats(values, participants)),  # noqa: B023
                    "sum_bytes": 8 * _ELEMENTS,
                }


def rule_rows() -> Iterator[dict[str, Any]]:
    """One row for each number of participants and rule, the mean first: update files of 4 bits become a state;
    single-threaded, and the time is a processor's."""
    method = FedKRSO(_SETTINGS)
    plan = _plan(method)
    zero = ExactState.zero(plan.training, _SCHEMA)
    with tempfile.TemporaryDirectory(prefix="fedkrso-bench-") as folder:
        updates = [_written(Path(folder), number, plan) for number in range(max(_BY_RULES))]
        for participants in _BY_RULES:
            for name in RULES.names():
                rule = rule_of(name, _TRIM)
                if not isinstance(rule, Mean) and not rule.withstands(participants):
                    continue
                some = updates[:participants]
                tracemalloc.start()
                method.aggregate(zero, plan, some, rule)
                peak_bytes = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                yield {
                    "participants": participants,
                    "rule": name,
                    "elements_per_second": _rate(participants, lambda: method.aggregate(zero, plan, some, rule)),  # noqa: B023
                    "peak_bytes": peak_bytes,
                }


def _rate(participants: int, act: Callable[[], object]) -> float:
    """Elements a second of a processor."""
    started = time.process_time()
    act()
    return _ELEMENTS * participants / (time.process_time() - started)


def _summed(parts: dict[str, RowScaled], participants: int, together: int) -> None:
    total = RunningSum(_SHAPES)
    for first in range(1, participants + 1, together):
        some: Sequence[int] = range(first, min(first + together, participants + 1))
        total.add_examples(sum(some))
        for name, part in parts.items():
            total.add_together(name, [Share(part, examples) for examples in some])


def _summed_floats(values: dict[str, Any], participants: int) -> None:
    sums = {name: np.zeros(shape, np.float32) for name, shape in _SHAPES.items()}
    for examples in range(1, participants + 1):
        for name, array in values.items():
            sums[name] += array * np.float32(examples)


def _as_unpacked(part: RowScaled) -> RowScaled:
    """As narrow as integers are when they come from a file."""
    return RowScaled(part.q.astype(np.int8), part.exponent) if part.most < 128 else part


def _plan(method: FedKRSO) -> Plan:
    return Plan(
        round=1,
        phase="train",
        cohort=(),
        deadline_at=0.0,
        task=TaskSection(kind="regression"),
        base_kind="int8",
        base_digest="",
        model_schema=_SCHEMA,
        checksums=("",) * len(_SCHEMA.layers),
        training=method.training(1, 0),
        version=0,
        chunk_bytes=65_536,
        objects=(),
    )


def _written(folder: Path, number: int, plan: Plan) -> WeightedUpdate:
    """An update of random numbers."""
    generator, seeds = np.random.default_rng(number), tuple(range(len(plan.training.seeds)))
    header = UpdateHeader(
        run="",
        round=1,
        node=str(number),
        version=0,
        examples=number + 1,
        rank=plan.training.rank,
        subspaces=seeds,
        loss=0.0,
        seconds=0.0,
    )
    bits = plan.training.bits
    write_update(
        folder / str(number),
        header,
        (
            Record(name, quantise_rows(generator.normal(size=shape).astype(np.float32) * 0.01, bits), bits)
            for name, shape in _SHAPES.items()
        ),
    )
    return WeightedUpdate(folder / str(number), header, header.examples)
