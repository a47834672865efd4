# SPDX-License-Identifier: Apache-2.0
"""Squared distances are those of Python's integers, however numbers come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcore.model import distances as module
from fedcore.model.distances import Products

LARGEST = 2**39


def by_number(values: NDArray[np.int64]) -> list[list[int]]:
    rows = values.tolist()
    return [[sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda updates: st.lists(
            st.lists(
                st.one_of(st.integers(-7, 7), st.integers(-LARGEST, LARGEST), st.sampled_from([-LARGEST, LARGEST])),
                min_size=updates,
                max_size=updates,
            ),
            min_size=1,
            max_size=9,
        )
    ),
    st.lists(st.integers(0, 39), min_size=1, max_size=8),
)
def test_blocks_of_any_size_and_scale_come_to_pythons_integers(numbers: list[list[int]], shifts: list[int]) -> None:
    columns = np.array(numbers, np.int64).T
    blocks = [(columns >> np.int64(shift)) << np.int64(shift) for shift in shifts]
    products = Products(len(columns))
    for block in blocks:
        products.add(block)
    assert products.distances() == by_number(np.concatenate(blocks, axis=1))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number at the end of its range, in whole chunks, as many as are added before they are put away."""
    count = module._CHUNK_NUMBERS
    for value in (LARGEST, LARGEST - 1, 2**19 - 1, 2**38 + 2**19 + 1):
        products = Products(2)
        block = np.full((2, count), value, np.int64)
        block[1] *= sign
        for _ in range(3):
            products.add(block)
        assert products.distances()[0][1] == (value - sign * value) ** 2 * count * 3
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 1)
    products = Products(2)
    products.add(np.array([[LARGEST] * 2100, [sign] * 2100]))
    assert products.distances()[1][0] == 2100 * (LARGEST - sign) ** 2


def test_no_sum_in_64_bits_can_be_beyond_its_range() -> None:
    largest_product = module._CHUNK_NUMBERS * 2 ** (2 * module._HALF_BITS - 2)
    assert 2 * largest_product <= 2**53 and (module._MOST_ADDED - 1) * 2 * largest_product < 2**63
