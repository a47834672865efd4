# SPDX-License-Identifier: Apache-2.0
"""Every kind of rows: golden vectors, nested ranks, E[P^T P] = I, exact merges, a checksum and a digest of its own."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist

import msgspec
import numpy as np
import pytest
from plans import subspaces

from coordinator.store.statefile import load_state, save_state
from fedcore.errors import ConfigError, ExactnessError
from fedcore.model.merge import layer_change, merge_update
from fedcore.model.state import ExactState, PublishedState
from fedcore.numbers.accumulator import RowScaled
from fedcore.round.checksums import checksums
from fedcore.subspaces.projection import projection_of
from fedcore.subspaces.rows import KINDS
from fedcore.subspaces.rows.gaussian import QUANTILES
from fedcore.weights.schema import LayerSpec, ModelSchema

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "projections.json").read_text(encoding="utf-8"))
SCHEMA = ModelSchema((LayerSpec("l", 5, 24),), ())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['kind']}-{case['layer']}")
def test_rows_are_the_golden_vectors(case: dict) -> None:
    assert KINDS[case["kind"]].rows(int(case["seed"]), case["layer"], case["r"], case["n"]).tolist() == case["rows"]


def test_every_kind_has_golden_vectors() -> None:
    assert {case["kind"] for case in GOLDEN} == KINDS.keys() - {"signs"}


@pytest.mark.parametrize("name", KINDS)
def test_a_row_does_not_depend_on_the_rank(name: str) -> None:
    kind = KINDS[name]
    for seed, n in ((0, 20), (5, 33), (2**64 - 1, 384)):
        rows = kind.rows(seed, "x", 16, n)
        assert rows.dtype == np.int8 and rows.shape == (16, n) and np.abs(rows.astype(int)).max() <= kind.largest
        for r in (1, 3, 8):
            assert np.array_equal(kind.rows(seed, "x", r, n), rows[:r])
        assert not np.array_equal(kind.rows(seed, "y", 16, n), rows) and not np.array_equal(
            kind.rows(seed + 1 - 2 * (seed > 9), "x", 16, n), rows
        )


@pytest.mark.parametrize("name", KINDS)
def test_mean_of_p_transposed_p_is_the_identity(name: str) -> None:
    n, r, count = 24, 4, 3000
    total = np.zeros((n, n))
    for seed in range(count):
        projection = projection_of(name, (seed,), r, "x", n)
        p = projection.rows * projection.scale
        total += p.T @ p
    mean = total / count
    # Beside the diagonal: standard deviation 1 / sqrt(r count) = 0.009. On it: normal numbers sqrt(2 / (r count)) =
    # 0.013; coordinates, each picked by a sixth of the seeds, sqrt((n / r - 1) / count) = 0.041. Five of each.
    diagonal, beside = {"signs": 1e-12, "coordinate": 0.205}.get(name, 0.065), 0.0 if name == "coordinate" else 0.046
    assert np.abs(np.diag(mean) - 1).max() <= diagonal
    assert np.abs(mean - np.diag(np.diag(mean))).max() <= beside
    # Of the whole there is much less spread: E|P|^2 = n.
    assert abs(np.trace(mean) / n - 1) <= {"gaussian": 0.014}.get(name, 5e-4)


def test_orthonormal_rows_are_orthogonal_and_of_one_length() -> None:
    for n in (24, 384, 1536):
        projection = projection_of("orthonormal", (3,), 8, "x", n)
        gram = (projection.rows.astype(np.int64) @ projection.rows.T) / (32**2 * n)
        # What rounding to units of 1/32 does to sums of n products.
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 5 / 32 / np.sqrt(12 * n)
        # A row has no more values than there are quantiles, and those are rounded alike.
        assert np.abs(np.diag(gram) - 1).max() < 0.01
        assert np.isclose(projection.scale**2 * 32**2 * n, n / 8)


def test_coordinates_are_signed_rows_of_the_identity_and_never_twice() -> None:
    rows = KINDS["coordinate"].rows(9, "x", 24, 24)
    assert (np.abs(rows).sum(axis=0) == 1).all() and (np.abs(rows).sum(axis=1) == 1).all()
    assert set(rows[rows != 0].tolist()) == {-1, 1}


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    assert list(QUANTILES) == [round(44 * NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)]
    # Far from a half, so that no library's last bits decide.
    assert min(abs(44 * NormalDist().inv_cdf((i + 0.5) / 256) % 1 - 0.5) for i in range(256)) > 0.005


@pytest.mark.parametrize("name", ["coordinate", "orthonormal"])
def test_more_rows_than_inputs_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.rank"):
        KINDS[name].rows(0, "x", 9, 8)


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_outside_64_bits_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="64-bit"):
        KINDS[name].rows(2**64, "x", 1, 8)


def learned(name: str, seeds: tuple[int, ...], rank: int, n: int) -> PublishedState:
    q = np.random.default_rng(4).integers(-32767, 32768, (5, len(seeds) * rank)).astype(np.int16)
    q[0] = 32767
    return PublishedState(1, seeds, rank, {"l": RowScaled(q, np.array([-9, -8, -30, 0, 3], np.int8))}, name)


@pytest.mark.parametrize("name", KINDS)
def test_a_merge_equals_integer_arithmetic_whatever_the_rows(name: str) -> None:
    seeds, rank, n = tuple(range(40)), 16, 24
    state = learned(name, seeds, rank, n)
    projection = projection_of(name, seeds, rank, "l", n)
    part = state.entries["l"]
    exact = part.q.astype(object) @ projection.rows.astype(object)
    # Numerator and denominator are integers: one rounding, from the very number.
    rounded = np.array([[np.float32(float(Fraction(int(value)))) for value in row] for row in exact])
    expected = rounded * (part.scale() * np.float32(projection.scale))[:, None]
    assert np.array_equal(merge_update(part, projection), expected)
    some = layer_change(state, LayerSpec("l", 5, n))
    assert np.array_equal(np.concatenate([some(slice(3, 5)), some(slice(0, 3))]), expected[[3, 4, 0, 1, 2]])


@pytest.mark.parametrize("name", KINDS)
def test_digests_files_and_checksums_tell_kinds_apart(name: str, tmp_path: Path) -> None:
    state = learned(name, (1, 2), 4, 24)
    others = [learned(other, (1, 2), 4, 24) for other in KINDS if other != name]
    assert state.digest() not in {other.digest() for other in others}
    assert not any(state.follows(other) for other in others)
    training = msgspec.structs.replace(subspaces((1, 2), 4), projection=name)
    state.write(tmp_path / "whole")
    assert PublishedState.read(tmp_path / "whole", training.shapes(SCHEMA)).digest() == state.digest()
    following = PublishedState(2, *state.subspaces[:2], state.entries, name)
    following.write(tmp_path / "difference", previous=state)
    assert (
        PublishedState.read(tmp_path / "difference", training.shapes(SCHEMA), previous=state).digest()
        == following.digest()
    )
    with pytest.raises(ExactnessError, match="a difference to version 1"):
        PublishedState.read(tmp_path / "difference", training.shapes(SCHEMA), previous=others[0])
    sums = {checksums(msgspec.structs.replace(training, projection=other), SCHEMA) for other in KINDS}
    assert len(sums) == len(KINDS)
    assert checksums(training, SCHEMA) != checksums(msgspec.structs.replace(training, seeds=(2, 1)), SCHEMA)
    exact = ExactState.zero(training, SCHEMA)
    save_state(tmp_path / "exact.npz", exact)
    assert load_state(tmp_path / "exact.npz").publish().digest() == PublishedState.zero(training, SCHEMA).digest()
