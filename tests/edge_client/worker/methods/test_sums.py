# SPDX-License-Identifier: Apache-2.0
"""Sums of second moments, and what hides a row in them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_client.worker.methods import sums
from edge_client.worker.methods.sums import MomentSums
from fedcore.numbers.symmetric import unpacked
from fedcore.round.training import PrivateTraining
from fedcore.round.training.head import hidden_units

EXAMPLE = PrivateTraining(level="example", clip=1.5, noise_multiplier=0.7, delta=1e-3, least_examples=4)
NODE = msgspec.structs.replace(EXAMPLE, level="node")
FEATURES, OUTPUTS = 20, 3
SIDE = FEATURES + 1 + OUTPUTS


def rows_of(count: int, seed: int = 0, size: float = 0.2) -> torch.Tensor:
    chance = np.random.default_rng(seed)
    x, y = chance.normal(size=(count, FEATURES)) * size, np.eye(OUTPUTS)[chance.integers(0, OUTPUTS, count)]
    return torch.from_numpy(np.concatenate([x, np.ones((count, 1)), y], axis=1))


def half(privacy: PrivateTraining | None, *batches: torch.Tensor) -> MomentSums:
    made = MomentSums(FEATURES, OUTPUTS, privacy)
    for batch in batches:
        made.add(batch)
    return made


def bare(made: MomentSums) -> NDArray[np.float64]:
    """The half that travels, in units of one, before the noise."""
    found = np.concatenate([made.blocks[0].numpy()[number, number:] for number in range(SIDE)])
    return np.asarray(found * 2.0**-24)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e4), st.floats(0.01, 128))
@settings(max_examples=40)
def test_one_row_moves_the_sums_by_no_more_than_the_clip(seed: int, size: float, clip: float) -> None:
    privacy = msgspec.structs.replace(EXAMPLE, clip=clip)
    some, one = rows_of(3, seed), rows_of(1, seed + 1, size)
    apart = bare(half(privacy, some, one)) - bare(half(privacy, some))
    # Of whole numbers, the squares of the difference are exact.
    assert float((apart**2).sum()) <= clip**2
    alone = half(privacy, one)
    assert (bare(alone) == apart).all(), "sums are exact: a row's part is the same whatever else there is"


def test_a_row_below_the_clip_stays_what_it_is_but_for_its_last_bits() -> None:
    rows = rows_of(50)
    wide = half(msgspec.structs.replace(EXAMPLE, clip=100.0), rows)
    scaled = (rows.numpy() * hidden_units(FEATURES, OUTPUTS)).astype(np.float64)
    whole = scaled.T @ scaled
    wanted = np.concatenate([whole[number, number:] for number in range(SIDE)])
    assert np.abs(bare(wide) - wanted).max() < 50 * 2 * 2.0**-12 * np.abs(scaled).max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_row_that_is_not_finite_adds_nothing_or_what_the_clip_allows(bad: float) -> None:
    rows = rows_of(4)
    spoiled = rows.clone()
    spoiled[2, 5] = bad
    assert np.isfinite(bare(half(EXAMPLE, spoiled))).all()
    assert float(((bare(half(EXAMPLE, spoiled)) - bare(half(EXAMPLE, rows[[0, 1, 3]]))) ** 2).sum()) <= 1.5**2


def test_noise_has_the_size_that_is_promised_and_is_drawn_once() -> None:
    rows = rows_of(400)
    made, other = half(EXAMPLE, rows), half(EXAMPLE, rows)
    clear = bare(made) / 400
    noises = []
    for one in (made, other):
        assert (one.packed() == one.packed()).all(), "asked again, it tells nothing more"
        whole = unpacked(one.packed().astype(np.float64))
        noises.append((np.concatenate([whole[number, number:] for number in range(SIDE)]) - clear) * 400)
    assert (noises[0] != noises[1]).all() and abs(np.corrcoef(noises)[0, 1]) < 0.2
    assert np.concatenate(noises).std() == pytest.approx(0.7 * 1.5, rel=0.1)


def test_without_a_promise_sums_are_those_of_the_rows_and_with_one_of_nodes_in_other_units() -> None:
    rows = rows_of(60)
    plain, node = half(None, rows[:30], rows[30:]), half(NODE, rows)
    means = (rows.T @ rows / 60).numpy()
    assert np.allclose(unpacked(plain.packed()), means, atol=1e-6) and not plain.hides_rows and not node.hides_rows
    units = hidden_units(FEATURES, OUTPUTS)
    assert np.allclose(unpacked(node.packed()), means * np.outer(units, units), atol=1e-6)


def test_blocks_of_rows_are_put_together_with_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_BLOCK_ROWS", 7)
    quiet = msgspec.structs.replace(EXAMPLE, noise_multiplier=1e-6, clip=50.0)
    several = half(quiet, rows_of(30)).packed()
    monkeypatch.setattr(sums, "_BLOCK_ROWS", 256)
    assert np.allclose(several, half(quiet, rows_of(30)).packed(), atol=1e-4)
