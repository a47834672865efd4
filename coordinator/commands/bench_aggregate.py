# SPDX-License-Identifier: Apache-2.0
"""How fast the exact sum is, beside a float32 mean of the same shape in NumPy, and what memory it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedcore.fields.types import Bits
from fedcore.numbers.accumulator import RunningSum, quantise_rows

__all__ = ["rows"]

# Rows and K r columns like those of one block of a 1 B Llama at rank 8 with 8 seeds.
_SHAPES = {"attention": (8192, 64), "mlp": (18432, 64)}
_PARTICIPANTS = (2, 10, 50)


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
