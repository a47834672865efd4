# SPDX-License-Identifier: Apache-2.0
"""How much of what a user sends is lost: the mean squared error of a number after the receiver, in units of the power
that it was sent with.

A user sends one stream on each of its subcarriers, by the beam that its receiver hears best, with its power shared so
that the sum of errors is smallest. The receiver combines its antennas by the linear filter that makes the error
smallest for the disturbance that it believes in (MMSE). Whether that is the disturbance that there is makes the
scenarios:

- `undisturbed`: there is noise, and it knows.
- `jammed`: there is a jammer, and it believes in noise alone.
- `protected`: there is a jammer, and it knows the directions that it is heard from, but not how strong each is.

Resource blocks of four subcarriers are dealt to the users in turn. Every number of an embedding is as likely on one
subcarrier as on another, so a user's error is the mean over its own.

Legend: r antennas of the receiver, t of a user, f subcarriers."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.channel.antennas import SUBCARRIERS, Complex, Draw, Powers, drawn, generator
from fedcore.config.channel import LARGEST_ERROR, ChannelSection, Jammer, Scenario
from fedcore.round.training.channel import ChannelTraining

__all__ = ["channel_training", "channel_words", "jamming", "least_errors", "received_error", "user_errors"]

_BLOCK: Final = 4
_DIGITS: Final = 4
"""Of an error in a plan: a library's last bit is nobody's business."""
_Floats = NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def channel_training(section: ChannelSection, run_seed: int, server_round: int) -> ChannelTraining:
    """What a round's plan says of the channel.

    Args:
        section: `[channel]`.
        run_seed: Of the run.
        server_round: The round.

    Example:
        >>> channel_training(ChannelSection(error=0.5), 0, 1).errors
        (0.5,)
    """
    if section.scenario is None:
        assert section.error is not None
        return ChannelTraining(errors=(section.error,))
    powers = Powers.of_decibels(section.user_db, section.jammer_db, section.noise_db)
    draw = drawn(section.users, generator(run_seed, server_round))
    found = user_errors(draw, powers, section.scenario, section.jammer)
    return ChannelTraining(errors=tuple(min(float(f"{error:.{_DIGITS}g}"), LARGEST_ERROR) for error in found))


def channel_words(section: ChannelSection, run_seed: int) -> str:
    """What a person should know of it before a run begins.

    Args:
        section: `[channel]`.
        run_seed: Of the run.

    Example:
        >>> channel_words(ChannelSection(error=0.5), 0).partition(";")[0]
        'channel: training sees embeddings with an error of 0.5 of their own power'
    """
    errors = channel_training(section, run_seed, 1).errors
    low, high = min(errors), max(errors)
    each = f"{low:g}" if low == high else f"{low:g} to {high:g} (round 1)"
    over = "channel" if section.scenario is None else f"channel ({section.scenario})"
    return (
        f"{over}: training sees embeddings with an error of {each} of their own power; "
        "what is measured sees them as they are"
    )


def user_errors(draw: Draw, powers: Powers, scenario: Scenario, jammer: Jammer = "barrage") -> _Floats:
    """The error of each user, (u,).

    Args:
        draw: Channels.
        powers: Of all.
        scenario: What there is, and what the receiver believes.
        jammer: Where the jammer sends its power.
    """
    antennas, paths = draw.sensed.shape
    noise = powers.noise * np.eye(antennas, dtype=np.complex128)[None]
    there = noise if scenario == "undisturbed" else noise + jamming(draw.jammer, powers.jammer, jammer)
    # What reaches the receiver on average, if every direction were as strong as the next.
    sensed = powers.jammer / paths * (draw.sensed @ draw.sensed.conj().T)
    believed = noise + sensed[None] if scenario == "protected" else noise
    users = len(draw.users)
    owner = np.arange(SUBCARRIERS) // _BLOCK % users
    found = [
        least_errors(
            draw.users[user][owner == user],
            powers.user,
            np.broadcast_to(believed, (SUBCARRIERS, antennas, antennas))[owner == user],
            np.broadcast_to(there, (SUBCARRIERS, antennas, antennas))[owner == user],
        ).mean()
        for user in range(users)
    ]
    return np.array(found)


def jamming(channel: Complex, power: float, jammer: Jammer) -> Complex:
    """The covariance of what a jammer has at the receiver's antennas, (f, r, r).

    Args:
        channel: (f, r, j).
        power: Of the jammer on a subcarrier, over all of its antennas.
        jammer: Over all directions alike, or in the one that reaches the receiver best.
    """
    if jammer == "barrage":
        found: Complex = power / channel.shape[2] * (channel @ channel.conj().swapaxes(1, 2))
        return found
    left, strength, _ = np.linalg.svd(channel, full_matrices=False)
    best = left[:, :, :1] * strength[:, None, :1]
    return np.asarray(power * (best @ best.conj().swapaxes(1, 2)), np.complex128)


def least_errors(channel: Complex, power: float, believed: Complex, there: Complex) -> _Floats:
    """The error on each subcarrier of one user, (f,), with beam, power and filter as they are best for one disturbance,
    where there is another.

    Args:
        channel: (f, r, t).
        power: Of the user on a subcarrier, on average.
        believed: Covariance of the disturbance that everything is made for, (f, r, r).
        there: Covariance of the disturbance that there is.
    """
    # What a beam w of one unit brings is w^H H^H Q^-1 H w: the best is the largest eigenvector.
    heard = np.linalg.solve(believed, channel)
    gains, beams = np.linalg.eigh(channel.conj().swapaxes(1, 2) @ heard)
    powers = _least_sum(gains[:, -1], power * len(channel))
    sent = (channel @ beams[:, :, -1:])[:, :, 0] * np.sqrt(powers)[:, None]
    return received_error(sent, believed, there)


def received_error(sent: Complex, believed: Complex, there: Complex) -> _Floats:
    """E |s - v^H y|^2 of a number s of power one, where y = sent s + disturbance, and v is the filter with the smallest
    error for the disturbance that is believed; (f,). With what is believed there, it is 1 / (1 + SNR).

    Args:
        sent: What a number of size one says at each antenna, (f, r).
        believed: Covariance of the disturbance that the filter is made for, (f, r, r).
        there: Covariance of the disturbance that there is.

    Example:
        >>> one = np.eye(1)[None].astype(complex)
        >>> received_error(np.array([[2.0 + 0j]]), one, one).round(6).tolist()
        [0.2]
    """
    whole = believed + sent[:, :, None] * sent.conj()[:, None]
    filters = np.linalg.solve(whole, sent[:, :, None])[:, :, 0]
    kept = np.einsum("fr,fr->f", filters.conj(), sent)
    disturbed = np.einsum("fr,frs,fs->f", filters.conj(), there, filters).real
    return np.asarray(np.abs(1 - kept) ** 2 + disturbed, np.float64)


def _least_sum(gains: _Floats, power: float) -> _Floats:
    """Power on each subcarrier, (f,), so that the sum of 1 / (1 + power gain) is smallest: water that is filled up to a
    level, where weak subcarriers get none.

    Args:
        gains: Of each, above 0.
        power: Of all together.
    """
    order = np.argsort(-gains)
    best = gains[order]
    # Level of the water if the best k are filled: (power + sum 1 / g) / sum 1 / sqrt(g), for each k.
    levels = (power + np.cumsum(1 / best)) / np.cumsum(1 / np.sqrt(best))
    filled = int(np.flatnonzero(levels * np.sqrt(best) > 1)[-1])
    return np.asarray(np.maximum(0.0, levels[filled] / np.sqrt(gains) - 1 / gains), np.float64)
