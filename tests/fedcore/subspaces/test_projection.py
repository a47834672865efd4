# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import ConfigError
from fedcore.round.checksums import signs_checksum
from fedcore.subspaces.projection import sign_bytes, signs

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "projection.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["layer"])
def test_signs_are_the_golden_vectors(case: dict) -> None:
    seed, layer, r, n = int(case["seed"]), case["layer"], case["r"], case["n"]
    assert sign_bytes(seed, layer, r, n).hex() == "".join(case["rows_hex"])
    assert signs(seed, layer, r, n)[0].tolist() == case["first_row"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 90))
def test_smaller_rank_is_a_prefix(seed: int, r: int, more: int, n: int) -> None:
    assert np.array_equal(signs(seed, "x", r + more, n)[:r], signs(seed, "x", r, n))


def test_mean_of_p_transposed_p_is_the_identity() -> None:
    n, r, count = 24, 4, 3000
    total = np.zeros((n, n))
    for seed in range(count):
        p = signs(seed, "x", r, n).astype(float)
        total += p.T @ p / r
    mean = total / count
    assert np.allclose(np.diag(mean), 1.0)
    # Off the diagonal: standard deviation 1 / sqrt(r count) = 0.009; five of them.
    assert np.abs(mean - np.eye(n)).max() < 0.05


def test_layers_and_seeds_have_signs_of_their_own() -> None:
    assert signs_checksum((1,), "a", 4, 64) != signs_checksum((1,), "b", 4, 64)
    assert signs_checksum((1,), "a", 4, 64) != signs_checksum((2,), "a", 4, 64)


def test_seed_outside_64_bits_is_refused() -> None:
    with pytest.raises(ConfigError, match="64-bit"):
        signs(2**64, "a", 1, 8)
