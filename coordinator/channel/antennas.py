# SPDX-License-Identifier: Apache-2.0
"""A draw of the channels between users, a jammer and a receiver with an array of antennas, and what the receiver can
know of the jammer.

Sizes and powers are those of R-SFLLM's authors' code: 3 users of 8 antennas, a receiver of 16, a jammer of 64, 64
subcarriers, 128 paths; users 10 degrees apart, each spread over 10, the jammer at 20 degrees and spread over 5. Their
beamforming is not public; the formulas here and in `errors` are textbook ones. Arrays are lines of antennas half a
wavelength apart, so the carrier (2.4 GHz there) does not appear; within their 14 symbols nothing changes, so one stands
for all.

Legend: u users, f subcarriers, p paths, a antennas (t of a user, j of the jammer, r of the receiver)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SUBCARRIERS", "Complex", "Draw", "Powers", "drawn", "generator", "steering"]

SUBCARRIERS: Final = 64
_RECEIVER, _USER, _JAMMER = 16, 8, 64
_PATHS: Final = 128
_APART, _SPREAD = 10.0, 10.0
_JAMMER_AT, _JAMMER_SPREAD = 20.0, 5.0
_FACING: Final = 60.0
"""A user's array looks anywhere within so many degrees of the receiver."""
_DELAYS: Final = 16.0
"""The longest path is behind by a quarter of a symbol, what the cyclic prefix of an OFDM symbol covers."""
_DOMAIN: Final = b"fedkrso channel draw 1"

Complex = NDArray[np.complex128]


@dataclass(frozen=True)
class Powers:
    """Of each subcarrier, as factors of one unit: of a user on average, of the jammer, of the noise at an antenna."""

    user: float
    jammer: float
    noise: float

    @classmethod
    def of_decibels(cls, user: float, jammer: float, noise: float) -> Powers:
        """From decibels.

        Example:
            >>> Powers.of_decibels(10, 30, 0)
            Powers(user=10.0, jammer=1000.0, noise=1.0)
        """
        return cls(*(10 ** (decibels / 10) for decibels in (user, jammer, noise)))


@dataclass(frozen=True)
class Draw:
    """Channels as they are for one round.

    Attributes:
        users: Of each user (u, f, r, t).
        jammer: (f, r, j).
        sensed: Steering vectors of the directions that the jammer is heard from (r, p); how strong each is, nobody
            knows.
    """

    users: Complex
    jammer: Complex
    sensed: Complex


def generator(run_seed: int, server_round: int) -> np.random.Generator:
    """Of a round's draw."""
    digest = hashlib.shake_128(_DOMAIN + f"{run_seed}/{server_round}".encode()).digest(16)
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def steering(degrees: NDArray[np.float64], antennas: int) -> Complex:
    """What a wave from each direction says at each antenna, (a, p), every number of size one.

    Args:
        degrees: Directions (p,), 0 straight ahead.
        antennas: In a line, half a wavelength apart.

    Example:
        >>> steering(np.array([0.0, 90.0]), 2).real.round(6).tolist()
        [[1.0, 1.0], [1.0, -1.0]]
    """
    return np.exp(1j * np.pi * np.outer(np.arange(antennas), np.sin(np.deg2rad(degrees))))


def drawn(users: int, chance: np.random.Generator) -> Draw:
    """Draw the channels of some users and of a jammer.

    Args:
        users: How many.
        chance: Decides all.
    """
    each = []
    for user in range(users):
        arrive = chance.normal((user - (users - 1) / 2) * _APART, _SPREAD, _PATHS)
        leave = chance.normal(chance.uniform(-_FACING, _FACING), _SPREAD, _PATHS)
        each.append(_channel(arrive, leave, _USER, chance))
    arrive = chance.normal(_JAMMER_AT, _JAMMER_SPREAD, _PATHS)
    leave = chance.normal(chance.uniform(-_FACING, _FACING), _JAMMER_SPREAD, _PATHS)
    return Draw(np.stack(each), _channel(arrive, leave, _JAMMER, chance), steering(arrive, _RECEIVER))


def _channel(
    arrive: NDArray[np.float64], leave: NDArray[np.float64], antennas: int, chance: np.random.Generator
) -> Complex:
    """From a sender to the receiver on each subcarrier, (f, r, a): paths of random strength and delay."""
    strength = chance.normal(size=(2, _PATHS))
    gains = (strength[0] + 1j * strength[1]) / np.sqrt(2 * _PATHS)
    delays = chance.uniform(0, _DELAYS, _PATHS)
    turned = gains * np.exp(-2j * np.pi * np.outer(np.arange(SUBCARRIERS), delays) / SUBCARRIERS)  # (f, p)
    into = steering(arrive, _RECEIVER)[None] * turned[:, None]  # (f, r, p)
    found: Complex = into @ steering(leave, antennas).conj().T
    return found
