# SPDX-License-Identifier: Apache-2.0
"""What a simulated receiver loses: textbook errors where there are any, and an order that no draw breaks."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.channel.antennas import SUBCARRIERS, Powers, drawn, generator, steering
from coordinator.channel.errors import (
    channel_training,
    channel_words,
    jamming,
    least_errors,
    received_error,
    user_errors,
)
from fedcore.config.channel import ChannelSection, Jammer

POWERS = Powers.of_decibels(5, 30, -3)


def test_against_white_noise_the_error_is_one_over_one_plus_snr() -> None:
    chance = np.random.default_rng(0)
    channel = chance.normal(size=(1, 16, 8)) + 1j * chance.normal(size=(1, 16, 8))
    for power, noise in ((3.0, 0.5), (1.0, 20.0)):
        white = noise * np.eye(16, dtype=np.complex128)[None]
        snr = power * np.linalg.svd(channel[0], compute_uv=False)[0] ** 2 / noise
        assert least_errors(channel, power, white, white) == pytest.approx([1 / (1 + snr)])


def test_the_error_is_what_a_receiver_makes_of_many_numbers() -> None:
    chance = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.complex128]]:
        return np.asarray((chance.normal(size=shape) + 1j * chance.normal(size=shape)) / np.sqrt(2), np.complex128)

    sent, root, believed = normal(3), normal(3, 3), np.asarray(0.3 * np.eye(3), np.complex128)
    there = np.asarray(root @ root.conj().T, np.complex128)
    y = sent[:, None] * (s := normal(200_000)) + root @ normal(3, 200_000)
    found = np.linalg.solve(believed + np.outer(sent, sent.conj()), sent).conj() @ y
    error = received_error(sent[None], believed[None], there[None])[0]
    assert np.mean(np.abs(found - s) ** 2) == pytest.approx(error, rel=0.02)
    assert error > received_error(sent[None], there[None], there[None])[0], "who knows what disturbs loses less"


def test_power_is_shared_so_that_the_sum_of_errors_is_smallest() -> None:
    one = np.broadcast_to(np.eye(1, dtype=np.complex128), (3, 1, 1))
    gains, power = np.array([9.0, 1.0, 0.01]), 1.0
    found = least_errors(np.sqrt(gains)[:, None, None] + 0j, power, one, one)
    # The weakest gets nothing; of the other two no other share of the power, in steps of a thousandth, does better.
    shares = 3 * power * np.linspace(0, 1, 1001)
    sums = 1 / (1 + 9 * shares) + 1 / (1 + (3 * power - shares)) + 1
    assert found[2] == 1 and found.sum() == pytest.approx(sums.min(), abs=1e-6)


@pytest.mark.parametrize("jammer", ["barrage", "focused"])
def test_of_no_draw_protection_helps_more_than_no_jammer_or_less_than_nothing(jammer: Jammer) -> None:
    for number in range(100 if jammer == "barrage" else 10):
        draw = drawn(3, generator(7, number))
        quiet = user_errors(draw, POWERS, "undisturbed")
        protected, jammed = (user_errors(draw, POWERS, scenario, jammer) for scenario in ("protected", "jammed"))
        assert (quiet <= protected).all() and (protected <= jammed).all()
        assert (quiet > 0).all()


def test_a_jammers_power_arrives_as_often_as_its_paths_say() -> None:
    """On average over draws, an antenna hears power of the jammer as it was sent: what is sensed counts on it."""
    heard = [jamming(drawn(1, generator(3, number)).jammer, 1000.0, "barrage") for number in range(40)]
    assert np.mean([np.trace(one.mean(axis=0)).real / 16 for one in heard]) == pytest.approx(1000, rel=0.1)
    draw = drawn(1, generator(3, 0))
    focused, barrage = (jamming(draw.jammer, 1000.0, jammer) for jammer in ("focused", "barrage"))
    assert np.linalg.matrix_rank(focused[0]) == 1
    assert np.trace(focused[0]).real > np.trace(barrage[0]).real
    assert np.abs(steering(np.array([12.0]), 4)) == pytest.approx(1.0)


def test_the_same_seed_and_round_give_the_same_errors_and_others_give_others() -> None:
    section = ChannelSection(scenario="jammed", users=5)
    one = channel_training(section, 4, 2)
    channel_training.cache_clear()
    assert channel_training(section, 4, 2) == one and len(one.errors) == 5
    assert channel_training(section, 4, 3) != one != channel_training(section, 5, 2)
    assert "channel (jammed): training sees embeddings with an error of" in channel_words(section, 4)
    assert SUBCARRIERS >= 4 * 16, "every user has a block"
    # A channel on which next to nothing arrives is one that a plan can still say.
    hopeless = ChannelSection(scenario="jammed", user_db=-60, jammer_db=60, jammer="focused")
    assert all(np.isfinite(channel_training(hopeless, 0, 1).errors))


def test_where_a_node_stands_does_not_depend_on_who_else_is_there() -> None:
    found = channel_training(ChannelSection(scenario="jammed"), 0, 1)
    places = [found.error(0, server_round, "kitchen") for server_round in range(60)]
    assert set(places) == set(found.errors)
    assert found.error(0, 1, "kitchen") == found.error(0, 1, "kitchen")
