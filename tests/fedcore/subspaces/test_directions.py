# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import ExactnessError
from fedcore.numbers.accumulator import RowScaled, quantise_rows
from fedcore.subspaces.directions import (
    BLOCK_ROWS,
    add_directions,
    as_units,
    change_of,
    checksum,
    direction,
    project,
    seed_probabilities,
    spread_fits,
    units_of,
)
from fedcore.subspaces.schedule import step_directions, subset
from fedcore.weights.schema import LayerSpec

LAYER = LayerSpec("encoder.layer.0.output.dense", 150, 13)


def table(*values: float) -> RowScaled:
    return quantise_rows(np.array([values], np.float32), 16)


def test_signs_are_the_bits_of_the_written_definition() -> None:
    # The third block of 64 rows has 22, so 286 bits.
    head = (
        b"fedkrso direction 1"
        + (7).to_bytes(8, "little")
        + b"\x03\0\0\0"
        + b"\x0d\0\0\0"
        + b"\x02\0\0\0"
        + LAYER.name.encode()
    )
    data = hashlib.shake_128(head).digest(36)
    assert data[:8].hex() == "e420a0e744d59e1a"
    bits = [data[i // 8] >> (i % 8) & 1 for i in range(22 * 13)]
    assert (1 - 2 * np.array(bits).reshape(22, 13)).tolist() == direction(7, 3, LAYER)[128:].tolist()
    assert checksum(7, LAYER) == "7a072ec753652a08"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 149), st.integers(1, 150))
def test_any_rows_can_be_had_by_themselves(first: int, count: int) -> None:
    rows = slice(first, min(150, first + count))
    assert np.array_equal(direction(1, 2, LAYER, rows), direction(1, 2, LAYER)[rows])
    part = table(0.5, -0.25, 1.75)
    assert np.array_equal(change_of(part, 1, LAYER, -3)(rows), change_of(part, 1, LAYER, -3)(slice(0, 150))[rows])


def test_layers_seeds_and_indices_have_signs_of_their_own() -> None:
    first = direction(1, 0, LAYER)
    for other in (direction(1, 1, LAYER), direction(2, 0, LAYER), direction(1, 0, LayerSpec("x", 150, 13))):
        assert 0.4 < (first == other).mean() < 0.6


def test_a_change_is_the_sum_of_whole_units_rounded_once() -> None:
    chance = np.random.default_rng(0)
    part = RowScaled(chance.integers(-32767, 32768, (1, 40)).astype(np.int16), np.array([-20], np.int8))
    exact = sum(int(part.q[0, k]) * direction(9, k, LAYER).astype(object) for k in range(40))
    wanted = np.array([[np.float32(np.float64(number) * 2.0**-25) for number in row] for row in exact], np.float32)
    assert np.array_equal(change_of(part, 9, LAYER, -5)(slice(0, 150)), wanted)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_directions_changes_no_bit(order: list[int]) -> None:
    units = np.array([(-1) ** k * (2**26 + 12345 * k) for k in range(12)], np.int64)
    rows = slice(BLOCK_ROWS, 2 * BLOCK_ROWS)
    at_once, one_by_one = np.zeros((BLOCK_ROWS, 13), np.int32), np.zeros((BLOCK_ROWS, 13), np.int32)
    add_directions(at_once, units, 3, LAYER, rows)
    for k in order:
        add_directions(one_by_one, np.where(np.arange(12) == k, units, 0), 3, LAYER, rows)
    assert np.array_equal(at_once, one_by_one)
    add_directions(at_once, -units, 3, LAYER, rows)
    assert not at_once.any(), "what was added can be taken back"


def test_sums_that_could_run_over_are_refused() -> None:
    assert spread_fits(np.full(4096, 2**21, np.int64)) and not spread_fits(np.full(4096, 2**22, np.int64))
    with pytest.raises(ExactnessError, match="too large"):
        units_of(table(*[100.0] * 8), "a")
    with pytest.raises(ExactnessError, match="units"):
        units_of(RowScaled(np.ones((1, 2), np.int16), np.array([-29], np.int8)), "a")


def test_rounding_a_table_to_16_bits_costs_less_than_a_ten_thousandth() -> None:
    """And to 8 bits one part in a hundred: why scalars are sent with 16."""
    values = np.random.default_rng(0).normal(size=(1, 4096)).astype(np.float32)
    errors = {
        bits: np.linalg.norm(quantise_rows(values, bits).values() - values) / np.linalg.norm(values) for bits in (8, 16)
    }
    assert errors[16] < 1e-4 and 5e-3 < errors[8] < 2e-2


def test_signs_spread_a_slope_no_more_than_normal_numbers_do() -> None:
    """E|z z^T g|^2 is d |g|^2 with signs, (d + 2) |g|^2 with normal numbers."""
    small, chance = LayerSpec("l", 1, 12), np.random.default_rng(0)
    slope = chance.normal(size=12)
    signs = np.concatenate([direction(5, k, small) for k in range(20_000)]).astype(np.float64)
    normal = chance.normal(size=signs.shape)
    found = [np.mean((z @ slope) ** 2 * (z**2).sum(axis=1)) / (slope @ slope) for z in (signs, normal)]
    assert found[0] == pytest.approx(12, rel=0.04) and found[1] == pytest.approx(14, rel=0.05)
    assert np.abs(signs.T @ signs / len(signs) - np.eye(12)).max() < 0.04


def test_what_is_rebuilt_from_inner_products_is_the_change_on_average() -> None:
    chance = np.random.default_rng(0)
    change = chance.normal(size=(150, 13)).astype(np.float32)
    products = project(change, 4, LAYER, range(5))
    assert np.allclose(products, [(direction(4, k, LAYER) * change).sum() for k in range(5)], rtol=1e-4)
    # The error of K directions is sqrt((d - 1) / K) of the change: a tenth of that with a hundred times as many.
    for count in (40, 4000):
        rebuilt = sum(c * direction(4, k, LAYER) for k, c in enumerate(project(change, 4, LAYER, range(count)) / count))
        error = np.linalg.norm(rebuilt - change) / np.linalg.norm(change)
        assert error == pytest.approx(np.sqrt((change.size - 1) / count), rel=0.1)


def test_directions_with_steeper_slopes_are_likelier_by_at_most_e() -> None:
    likely = seed_probabilities(np.array([0.0, 2.0, 4.0, 9.0]), np.array([0.0, 2.0, 1.0, 9.0]))
    assert likely.sum() == pytest.approx(1) and likely[0] < likely[1] == likely[3] < likely[2]
    assert likely[2] / likely[0] == pytest.approx(np.e)
    assert seed_probabilities(np.zeros(4), np.zeros(4)).tolist() == [0.25] * 4


def test_steps_draw_by_their_probabilities() -> None:
    drawn = step_directions(3, 1, "a", 6000, [1.0, 3.0, 0.0, 2.0])
    assert [round(6 * drawn.count(k) / 6000, 1) for k in range(4)] == pytest.approx([1, 3, 0, 2], abs=0.15)
    assert drawn[:10] == step_directions(3, 1, "a", 10, [1.0, 3.0, 0.0, 2.0])
    assert drawn[:10] != step_directions(3, 2, "a", 10, [1.0, 3.0, 0.0, 2.0])


def test_a_subset_is_drawn_without_replacement() -> None:
    chosen = [subset(1, 1, node, "l", 3, 10) for node in "abcdefgh"]
    assert all(len(set(some)) == 3 and set(some) <= set(range(10)) for some in chosen)
    assert len(set(chosen)) > 4


def test_units_are_rounded_half_to_even() -> None:
    assert as_units(np.array([1.5, 2.5, -0.5, 1.0]) * 2.0**-28).tolist() == [2, 2, 0, 1]
