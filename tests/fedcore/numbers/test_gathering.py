# SPDX-License-Identifier: Apache-2.0
"""Parts that are added together: every way gives the integers that Python's own arithmetic gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.numbers.accumulator import RowScaled, RunningSum, Share
from fedcore.numbers.gathering import gather_of


def _parts(parts: int, most: int, seed: int) -> tuple[list[RowScaled], np.ndarray]:
    generator = np.random.default_rng(seed)
    narrow: Any = np.int8 if most < 128 else np.int16
    made = [
        RowScaled(
            generator.integers(-most, most + 1, (5, 7)).astype(narrow),
            generator.integers(-20, -14, 5).astype(np.int8),
        )
        for _ in range(parts)
    ]
    return made, generator.integers(1, 3000, (parts, 1)) << generator.integers(0, 6, (parts, 5))


@given(st.integers(1, 17), st.sampled_from([7, 127, 32767]), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_parts_come_to_what_python_adds(parts: int, most: int, seed: int) -> None:
    made, factors = _parts(parts, most, seed)
    reach = float((factors * most).sum(axis=0).max())
    expected = sum(factor[:, None].astype(object) * part.q for factor, part in zip(factors, made, strict=True))
    for allowed in (reach, 2.0**31 - 1, 2.0**40):  # also in more bits than it takes
        if allowed >= reach:
            gather = gather_of(made, factors, (5, 7), allowed)
            found = np.concatenate([np.rint(gather.of(slice(first, first + 1))) for first in range(5)])
            assert (found.astype(np.int64) == expected.astype(np.int64)).all()


@pytest.mark.parametrize("over", [0, 1])
def test_sums_at_the_limit_of_floats_are_exact(over: int) -> None:
    # Odd sums next to 2**24 are the first that a float32 cannot hold.
    weights = [2**20] * 15 + [2**20 - 1 + over]
    part = RowScaled(np.ones((1, 3), np.int8), np.zeros(1, np.int8))
    total = RunningSum({"l": (1, 3)})
    total.add_together("l", [Share(part, weight) for weight in weights])
    total.add_examples(1)
    assert [numbers.tolist() for _, numbers in total.means()] == [[[sum(weights) << 32] * 3]]
