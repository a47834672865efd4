# SPDX-License-Identifier: Apache-2.0
"""Half of a symmetric matrix is all of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import MalformedMessage
from fedcore.numbers.coding import packed_shape
from fedcore.numbers.symmetric import pack_rows, unpacked


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_symmetric_matrix_comes_back_from_half_of_its_numbers(side: int, seed: int) -> None:
    # No number is zero or there twice, so that what is missing or in another place shows.
    half = np.random.default_rng(seed).permutation(side * side).reshape(side, side) + 1
    whole = np.triu(half) + np.triu(half, 1).T
    packed = pack_rows(side, lambda i: whole[i, i:], np.int64)
    assert packed.shape == packed_shape(side)
    assert (unpacked(packed) == whole).all()
    assert np.count_nonzero(packed) == side * (side + 1) // 2, "each of them once"
    assert packed.size - side * (side + 1) // 2 == (0 if side % 2 == 0 else (side + 1) // 2)


def test_any_other_rectangle_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="3 x 8 numbers"):
        unpacked(np.zeros((3, 8)))
