# SPDX-License-Identifier: Apache-2.0
"""Shamir's secret sharing of 32-byte secrets: any `threshold` of the shares give the secret, fewer say nothing of it.

Source: Shamir, How to share a secret, CACM 22 (1979). The field is the integers modulo the smallest prime above 2**256,
so that every 32-byte secret is one of them; a share is a number of it in 33 bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final

from fedcore.errors import SecureError

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "combine", "split"]

PRIME: Final = 2**256 + 297
"""The smallest prime above 2**256."""
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33


def split(secret: bytes, threshold: int, places: Iterable[int], draw: Callable[[int], bytes]) -> dict[int, bytes]:
    """Shares of a secret, by place.

    Args:
        secret: 32 bytes.
        threshold: How many shares give the secret back.
        places: Where the polynomial is evaluated: distinct, from 1 up.
        draw: Makes 48 secret random bytes of each number from 1 to `threshold` - 1: the polynomial's coefficients, with
            128 bits more than the field has, so that they are as good as even over it.

    Raises:
        SecureError: The threshold is not from 1 to the number of places, or a place is none.

    Example:
        >>> shares = split(bytes(range(32)), 2, [1, 2, 3], lambda number: bytes([number]) * 48)
        >>> combine({place: shares[place] for place in (1, 3)}, 2) == bytes(range(32))
        True
    """
    places = list(places)
    if not 1 <= threshold <= len(places) or len(set(places)) != len(places) or min(places) < 1:
        raise SecureError(f"{threshold} of {len(places)} shares cannot give a secret back")
    coefficients = [int.from_bytes(draw(number), "little") % PRIME for number in range(1, threshold)]
    coefficients.insert(0, int.from_bytes(secret, "little"))
    return {place: _at(coefficients, place).to_bytes(SHARE_BYTES, "little") for place in places}


def _at(coefficients: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret that shares are of.

    Args:
        shares: By place; of more than `threshold`, those of the lowest places are taken.
        threshold: As it was split.

    Raises:
        SecureError: There are too few, or they are no shares of one secret.
    """
    if len(shares) < threshold:
        raise SecureError(f"{len(shares)} shares where {threshold} are needed")
    places = tuple(sorted(shares)[:threshold])
    numbers = [int.from_bytes(shares[place], "little") for place in places]
    factors = _at_zero(places)
    secret = sum(factor * number for factor, number in zip(factors, numbers, strict=True)) % PRIME
    if secret >> 8 * SECRET_BYTES or any(number >= PRIME for number in numbers):
        raise SecureError("these are no shares of one secret")
    return secret.to_bytes(SECRET_BYTES, "little")


@lru_cache(maxsize=512)
def _at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's factors at zero: the same for all secrets whose shares lie at these places."""
    top = 1
    for place in places:
        top = top * place % PRIME
    factors = []
    for place in places:
        bottom = place
        for other in places:
            if other != place:
                bottom = bottom * (other - place) % PRIME
        factors.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(factors)
