# SPDX-License-Identifier: Apache-2.0
"""How fast the exact sum is, beside a float32 mean of the same shape in NumPy, and what memory it takes; and what rules
that look at all participants at once cost beside the mean of the same files."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedcore.config.sections import TaskSection
from fedcore.fields.types import Bits
from fedcore.methods.fedkrso import FedKRSO, FedKRSOSettings
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate, write_update
from fedcore.numbers.accumulator import RunningSum, quantise_rows
from fedcore.numbers.records import Record
from fedcore.numbers.rules import Rule, rule_of
from fedcore.registry import RULES
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.schema import LayerSpec, ModelSchema

__all__ = ["rows", "rule_rows"]

# Rows and K r columns like those of one block of a 1 B Llama at rank 8 with 8 seeds.
_SHAPES = {"attention": (8192, 64), "mlp": (18432, 64)}
_PARTICIPANTS = (2, 10, 50)
_BY_RULES = (3, 10, 30)
_METHOD = FedKRSO(FedKRSOSettings(rank=8, num_seeds=8, projection="signs"))
_SCHEMA = ModelSchema(tuple(LayerSpec(name, shape[0], 2048) for name, shape in _SHAPES.items()), ())
_TRIM = 0.2


def rows(bits: tuple[Bits, ...] = (8, 16)) -> Iterator[dict[str, Any]]:
    """One row for each number of participants and precision; single-threaded."""
    generator = np.random.default_rng(0)
    values = {name: generator.normal(size=shape).astype(np.float32) * 0.01 for name, shape in _SHAPES.items()}
    elements = sum(array.size for array in values.values())
    for precision in bits:
        parts = {name: quantise_rows(array, precision) for name, array in values.items()}
        for participants in _PARTICIPANTS:
            total = RunningSum(_SHAPES)
            started = time.perf_counter()
            for examples in range(1, participants + 1):
                total.add_examples(examples)
                for name, part in parts.items():
                    total.add(name, part, examples)
            seconds = time.perf_counter() - started
            sums = {name: np.zeros(shape, np.float32) for name, shape in _SHAPES.items()}
            started = time.perf_counter()
            for examples in range(1, participants + 1):
                for name, array in values.items():
                    sums[name] += array * np.float32(examples)
            float_seconds = time.perf_counter() - started
            yield {
                "participants": participants,
                "bits": precision,
                "elements_per_second": elements * participants / seconds,
                "float_elements_per_second": elements * participants / float_seconds,
                "sum_bytes": 8 * elements,
            }


def rule_rows() -> Iterator[dict[str, Any]]:
    """One row for each number of participants and rule, the mean first: update files of 4 bits become a state;
    single-threaded, and the time is a processor's."""
    training = _METHOD.training(1, 0)
    plan = Plan(
        round=1,
        phase="train",
        cohort=(),
        deadline_at=0.0,
        task=TaskSection(kind="regression"),
        base_kind="int8",
        base_digest="",
        model_schema=_SCHEMA,
        checksums=("",) * len(_SCHEMA.layers),
        training=training,
        version=0,
        chunk_bytes=65_536,
        objects=(),
    )
    elements, zero = sum(rows * columns for rows, columns in _SHAPES.values()), ExactState.zero(training, _SCHEMA)
    with tempfile.TemporaryDirectory(prefix="fedkrso-bench-") as folder:
        updates = [_written(Path(folder), number, plan) for number in range(max(_BY_RULES))]
        for participants in _BY_RULES:
            for name in RULES.names():
                found = updates[:participants], rule_of(name, _TRIM)
                tracemalloc.start()
                _METHOD.aggregate(zero, plan, *found)
                peak_bytes = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                yield {
                    "participants": participants,
                    "rule": name,
                    "elements_per_second": elements * participants / _seconds(zero, plan, *found),
                    "peak_bytes": peak_bytes,
                }


def _seconds(zero: ExactState, plan: Plan, updates: list[WeightedUpdate], rule: Rule) -> float:
    started = time.process_time()
    _METHOD.aggregate(zero, plan, updates, rule)
    return time.process_time() - started


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
