# SPDX-License-Identifier: Apache-2.0
"""Secrets and their shares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import SecureError
from fedcore.secure.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, combine, split


def drawn(word: bytes) -> Callable[[int], bytes]:
    return lambda number: hashlib.shake_128(word + bytes([number])).digest(48)


def test_the_field_is_that_of_the_smallest_prime_that_holds_every_secret() -> None:
    """Miller and Rabin's test with 40 bases: what is composite passes it with a chance of 4**-40."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        value = pow(base, odd, PRIME)
        assert value in (1, PRIME - 1) or any(pow(value, 2**k, PRIME) == PRIME - 1 for k in range(twos))
    # Base 3: to base 2 Fermat's number 2**256 + 1 looks like a prime.
    assert all(pow(3, number - 1, number) != 1 for number in range(2**256 + 1, PRIME, 2))


def test_golden_shares() -> None:
    """Whoever changes these has nodes of two versions that cannot help each other."""
    shares = split(bytes(range(32)), 3, [1, 2, 5], drawn(b"golden"))
    assert {place: hashlib.sha256(share).hexdigest()[:16] for place, share in shares.items()} == {
        1: "4d29bf9955e4c314",
        2: "f7c2487a47b7c711",
        5: "88c1d898d768e122",
    }
    assert combine(shares, 3) == bytes(range(32))


@given(
    secret=st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
    places=st.lists(st.integers(1, 10_000), min_size=1, max_size=12, unique=True),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_any_threshold_of_shares_gives_the_secret_and_fewer_fit_every_secret(
    secret: bytes, places: list[int], data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, len(places)))
    shares = split(secret, threshold, places, drawn(b"x"))
    assert all(len(share) == SHARE_BYTES for share in shares.values())
    some = data.draw(st.permutations(places))[:threshold]
    assert combine({place: shares[place] for place in some}, threshold) == secret
    if threshold > 1:
        # One share less: for another secret there is a last share that fits it just as well.
        known = {place: shares[place] for place in some[1:]}
        with pytest.raises(SecureError, match="shares where"):
            combine(known, threshold)
        other = bytes(SECRET_BYTES)
        last = fitting(other, known, some[0])
        assert combine({**known, some[0]: last}, threshold) == other


def fitting(secret: bytes, known: dict[int, bytes], place: int) -> bytes:
    """The share at a place with which others give a secret: Lagrange through the secret at zero."""
    points = [(0, int.from_bytes(secret, "little")), *((p, int.from_bytes(s, "little")) for p, s in known.items())]
    total = 0
    for x, y in points:
        for other, _ in points:
            if other != x:
                y = y * (place - other) * pow(x - other, -1, PRIME) % PRIME
        total += y
    return (total % PRIME).to_bytes(SHARE_BYTES, "little")


def test_shares_that_cannot_be() -> None:
    for threshold, places in ((0, [1]), (3, [1, 2]), (1, [0, 1]), (1, [1, 1])):
        with pytest.raises(SecureError, match="cannot give a secret back"):
            split(bytes(32), threshold, places, drawn(b""))
    with pytest.raises(SecureError, match="no shares of one secret"):
        combine({1: PRIME.to_bytes(SHARE_BYTES, "little")}, 1)
