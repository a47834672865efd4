# SPDX-License-Identifier: Apache-2.0
"""Sums, states, merges: exact against rational arithmetic, and independent of order."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import subspaces

from coordinator.store.statefile import load_state, save_state
from fedcore.errors import ExactnessError, MalformedMessage, UpdateRefused
from fedcore.model.merge import merge_update, merged
from fedcore.model.state import ExactState, PublishedState, model_digest
from fedcore.numbers.accumulator import MAX_EXAMPLES, RowScaled, RunningSum, mean_fixed, quantise_rows, scaled_fixed
from fedcore.numbers.records import Record, pack_record, read_records, unpack_record, write_records
from fedcore.subspaces.projection import projection_of, signs
from fedcore.subspaces.schedule import interval_order, pool_seeds
from fedcore.weights.quantise import dequantise_weight, quantise_weight
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

SCHEMA = ModelSchema(
    (LayerSpec("l", 5, 12),), (TensorSpec("head.bias", (3,), False), TensorSpec("head.weight", (3, 4), False))
)


def normal(shape: tuple[int, ...], seed: int, size: float = 0.01) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 8, 16]), st.floats(1e-7, 10))
def test_quantisation_error_is_at_most_half_a_step(seed: int, bits: int, size: float) -> None:
    values = np.clip(normal((3, 7), seed, size), -100, 100)
    part = quantise_rows(values, bits)  # type: ignore[arg-type]
    step = np.exp2(part.exponent.astype(float))[:, None]
    assert np.abs(part.q).max() <= 2 ** (bits - 1) - 1
    assert (np.abs(part.values() - values) <= step / 2 + 1e-12).all()
    # No coarser than it must be: half the scale would not hold the row.
    fine = part.exponent > -32
    assert (np.abs(values).max(axis=1)[fine] > (2 ** (bits - 1) - 1) * step[fine, 0] / 2).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1000.0])
def test_diverged_accumulator_is_refused(bad: float) -> None:
    with pytest.raises(UpdateRefused, match="lower the learning rate"):
        quantise_rows(np.array([[bad, 1.0]], np.float32), 8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_sum_does_not_depend_on_order_and_is_the_rational_mean(seed: int, order: list[int]) -> None:
    parts = [(quantise_rows(normal((4, 6), seed + i), (4, 8, 16)[i % 3]), i + 1) for i in range(5)]
    total, shuffled = RunningSum({"x": (4, 6)}), RunningSum({"x": (4, 6)})
    for sink, indices in ((total, range(5)), (shuffled, order)):
        for i in indices:
            part, examples = parts[i]
            sink.add_examples(examples)
            sink.add("x", part, examples)
    mean = dict(total.means())["x"]
    assert np.array_equal(mean, dict(shuffled.means())["x"])
    for row, column in ((0, 0), (3, 5)):
        exact = sum(Fraction(int(p.q[row, column])) * Fraction(2) ** int(p.exponent[row]) * n for p, n in parts) / sum(
            n for _, n in parts
        )
        assert abs(Fraction(int(mean[row, column]), 2**32) - exact) <= Fraction(1, 2**33)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**50), 2**50), st.integers(1, MAX_EXAMPLES))
def test_mean_rounds_half_to_even(total: int, divisor: int) -> None:
    # Python's round of a Fraction is half to even as well, on integers without limit.
    assert int(mean_fixed(np.array([[total]]), divisor)[0, 0]) == round(Fraction(total, divisor))


def test_columns_of_unused_seeds_count_as_zero() -> None:
    total = RunningSum({"x": (2, 6)})
    part = quantise_rows(np.ones((2, 2), np.float32), 8)
    total.add_examples(1)
    total.add("x", part, 1, np.array([1, 4]))
    total.add_examples(3)
    mean = dict(total.means())["x"] / 2**32
    assert mean.tolist() == [[0, 0.25, 0, 0, 0.25, 0]] * 2


def rounds(count: int, size: float = 0.01, bits: int = 16) -> list[ExactState]:
    state = replace(ExactState.zero(subspaces((11, 22), 4), SCHEMA), bits=bits)
    out = [state]
    for t in range(count):
        total = RunningSum(subspaces((5, 6), 4).shapes(SCHEMA))
        for node in range(3):
            total.add_examples(node + 1)
            for name, shape in subspaces((5, 6), 4).shapes(SCHEMA).items():
                total.add(name, quantise_rows(normal(shape, 100 * t + node, size * 4**t), 8), node + 1)
        state = state.after(total)
        out.append(state)
    return out


@pytest.mark.parametrize("bits", [8, 11, 16])
def test_differences_and_whole_states_lead_to_the_same_digest(bits: int, tmp_path: Path) -> None:
    shapes = subspaces((5, 6), 4).shapes(SCHEMA)
    held = None
    # Rows grow fourfold a round, so that their scales double between versions.
    for state in rounds(5, bits=bits):
        published = state.publish()
        published.write(tmp_path / "whole")
        assert PublishedState.read(tmp_path / "whole", shapes).digest() == published.digest()
        if held is not None:
            published.write(tmp_path / "difference", previous=held)
            assert PublishedState.read(tmp_path / "difference", shapes, previous=held).digest() == published.digest()
            with pytest.raises(ExactnessError, match="this node holds none"):
                PublishedState.read(tmp_path / "difference", shapes)
        held = published


@pytest.mark.parametrize("bits", [8, 11, 16])
def test_published_state_is_the_exact_one_within_half_a_step(bits: int) -> None:
    state = rounds(3, bits=bits)[-1]
    published = state.publish()
    for name, total in state.sums.items():
        part = published.entries[name]
        step = np.exp2(part.exponent.astype(float))[:, None]
        assert (np.abs(part.values() - total * 2.0**-32) <= step / 2).all()
        # The row's largest takes all bits, but for one where the scale had to double for another number.
        largest = np.abs(part.q.astype(int)).max(axis=1)
        assert (largest < 2 ** (bits - 1)).all() and (largest >= 2 ** (bits - 3)).all()


def test_fewer_bits_change_what_is_published_and_never_what_is_known(tmp_path: Path) -> None:
    """What was rounded for one published state is not in the next one: also a state that went to disk in between knows
    all of it."""
    wide, narrow = rounds(4)[-1], rounds(4, bits=8)[-1]
    for name, total in wide.sums.items():
        assert np.array_equal(total, narrow.sums[name])
    save_state(tmp_path / "state.npz", narrow)
    assert load_state(tmp_path / "state.npz").publish().digest() == narrow.publish().digest() != wide.publish().digest()


def test_digest_sees_every_number_and_the_version() -> None:
    published = rounds(1)[-1].publish()
    digests = {model_digest("base", published), model_digest("other", published)}
    for name, part in published.entries.items():
        q = part.q.copy()
        q[0, 0] += 1
        changed = PublishedState(1, published.seeds, 4, {**published.entries, name: RowScaled(q, part.exponent)})
        digests.add(model_digest("base", changed))
    digests.add(model_digest("base", PublishedState(2, published.seeds, 4, published.entries)))
    assert len(digests) == 2 + len(published.entries) + 1


def test_digest_of_a_known_state_never_changes() -> None:
    state = PublishedState.zero(subspaces((1, 2), 4), SCHEMA)
    assert state.digest() == "0d7f3a4e729e71eb7d6328407b3d4dcb5cba244433067b520e84e34924c3543d"


def test_merge_equals_integer_arithmetic_and_ignores_the_block_order() -> None:
    published = rounds(2, 0.05)[-1].publish()
    part = published.entries["l"]
    update = merge_update(part, projection_of("signs", published.seeds, 4, "l", 12))
    projection = np.concatenate([signs(seed, "l", 4, 12) for seed in published.seeds]).astype(np.int64)
    exact = part.q.astype(np.int64) @ projection
    factor = part.scale() * np.float32(0.5)
    assert np.array_equal(update, exact.astype(np.float32) * factor[:, None])
    weight = normal((5, 12), 9, 1.0)
    assert merged(weight, update).dtype == np.float32
    assert np.allclose(merged(weight, update), weight + part.values() @ projection / 2, atol=1e-6)


def test_merge_stays_exact_beyond_the_bound_of_float32() -> None:
    seeds = tuple(range(160))
    q = np.full((2, 640), 32767, np.int16)
    part = RowScaled(q, np.zeros(2, np.int8))
    projection = np.concatenate([signs(seed, "w", 4, 3) for seed in seeds]).astype(object)
    exact = q.astype(object) @ projection
    found = merge_update(part, projection_of("signs", seeds, 4, "w", 3))
    assert np.array_equal(found, exact.astype(np.float64).astype(np.float32) * np.float32(0.5))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_int8_weights_are_idempotent_and_close(seed: int) -> None:
    weight = normal((4, 9), seed, 1.0)
    weight[2] = 0
    q, scale = quantise_weight(weight)
    assert (np.abs(dequantise_weight(q, scale) - weight) <= scale[:, None] * 0.5001).all()
    again, same = quantise_weight(dequantise_weight(q, scale))
    assert np.array_equal(again, q) and np.allclose(same, scale, rtol=1e-6)
    assert not q[2].any() and scale[2] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 8, 16]), st.integers(1, 5), st.integers(1, 9))
def test_records_come_back_as_they_were(seed: int, bits: int, rows: int, columns: int) -> None:
    record = Record("x", quantise_rows(normal((rows, columns), seed), bits), bits)  # type: ignore[arg-type]
    back = unpack_record(pack_record(record))
    assert isinstance(record.part, RowScaled) and isinstance(back.part, RowScaled)
    assert np.array_equal(back.part.q, record.part.q) and np.array_equal(back.part.exponent, record.part.exponent)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_record_files_are_malformed_or_equal_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("r") / "f"
    write_records(path, {"format": "x"}, [Record("a", quantise_rows(normal((3, 5), 1), 8), 8)])
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        found = list(read_records(path))
    except MalformedMessage:
        found = []
    for record in found:
        assert isinstance(record.part, RowScaled)
        assert record.part.q.shape[0] == len(record.part.exponent)


def test_cycle_uses_every_seed_once_a_lap_and_is_the_same_for_all() -> None:
    laps = [k for t in range(1, 6) for k in interval_order("cycle", 3, t, 5, 4, "a")]
    assert all(sorted(laps[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 20, 5))
    assert interval_order("cycle", 3, 2, 5, 4, "a") == interval_order("cycle", 3, 2, 5, 4, "b")
    assert interval_order("uniform", 3, 2, 5, 40, "a") != interval_order("uniform", 3, 2, 5, 40, "b")


def test_pools_are_distinct_between_generations() -> None:
    seeds = [seed for generation in range(20) for seed in pool_seeds(1, generation, 8)]
    assert len(set(seeds)) == 160 and max(seeds) > 2**60


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**43), 2**43), st.floats(0, 4))
def test_a_scaled_number_is_the_rounded_product(value: int, factor: float) -> None:
    expected = round(Fraction(value) * round(factor * 2**16) / 2**16)
    assert int(scaled_fixed(np.array([value]), factor)[0]) == expected


def test_server_step_and_momentum_are_those_of_a_ball_that_rolls(tmp_path: Path) -> None:
    """V = mean + momentum V, S = S + step V; written down in between, as by a coordinator that is killed."""
    state = ExactState.zero(subspaces((5, 6), 4), SCHEMA)
    name = next(iter(state.sums))
    velocity, sums = np.zeros(state.sums[name].shape), np.zeros(state.sums[name].shape)
    for t in range(4):
        total = RunningSum(subspaces((5, 6), 4).shapes(SCHEMA))
        total.add_examples(1)
        part = quantise_rows(normal(state.sums[name].shape, t, 0.01), 8)
        total.add(name, part, 1)
        velocity = part.values() + 0.75 * velocity
        sums = sums + 0.5 * velocity
        state = state.after(total, step=0.5, momentum=0.75)
        save_state(tmp_path / "state.npz", state)
        state = load_state(tmp_path / "state.npz")
    assert np.abs(state.sums[name] / 2**32 - sums).max() < 4 / 2**32
    refreshed = state.refreshed(subspaces((7, 8), 4), SCHEMA)
    assert name in state.velocity and name not in refreshed.velocity
    assert refreshed.velocity.keys() == {tensor.name for tensor in SCHEMA.tensors}
