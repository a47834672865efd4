# SPDX-License-Identifier: Apache-2.0
"""Keys, masks and the graph of who masks with whom."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import SecureError
from fedcore.model.lanes import from_lanes, to_lanes
from fedcore.round.secure import MOST_WEIGHT, SecureRound, lane_bytes_for
from fedcore.secure.graph import degree_for, neighbours, threshold_of
from fedcore.secure.keys import Secrets, mask_seed
from fedcore.secure.masks import CHUNK_BYTES, Lanes, key_stream, masked_chunks


def test_masks_are_the_key_stream_of_chacha20() -> None:
    """RFC 8439, appendix A.1: test vectors 2 (the key is zero) and 3 (another key), both with the block counter 1."""
    assert key_stream(bytes(32), 0)[:64].hex() == (
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    assert key_stream(bytes(31) + b"\1", 0)[:32].hex() == (
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
    )
    assert key_stream(bytes(32), 1) != key_stream(bytes(32), 0)
    assert key_stream(bytes(32), 3, 100) == key_stream(bytes(32), 3)[:100]


def test_golden_keys() -> None:
    """Whoever changes these has nodes of two versions whose masks do not cancel."""
    one, other = Secrets(bytes(32), "a", b"run"), Secrets(bytes([1]) * 32, "b", b"run")
    shared = mask_seed(one.mask_secret, other.mask_public, b"run", "a", "b")
    assert shared == mask_seed(other.mask_secret, one.mask_public, b"run", "b", "a")
    assert shared.hex()[:16] == "6254bf6f32ab2f75"
    assert one.self_seed.hex()[:16] == "b83be4e53750b3f2" and one.seal_public.hex()[:16] == "32ce78b8edb12594"
    box = one.seal("b", other.seal_public, bytes(66), b"roster")
    assert box.hex()[:16] == "6bb69745768dd511"
    assert other.unseal("a", one.seal_public, box, b"roster") == bytes(66)
    for sender, roster, unsealed in (("c", b"roster", box), ("a", b"other", box), ("a", b"roster", box[:-1] + b"\0")):
        with pytest.raises(SecureError, match="did not seal for this node"):
            other.unseal(sender, one.seal_public, unsealed, roster)
    with pytest.raises(SecureError, match="not a key"):
        mask_seed(one.mask_secret, bytes(32), b"run", "a", "b")


@given(lane_bytes=st.integers(4, 8), seed=st.integers(0, 2**32), count=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_lanes_are_added_and_taken_away_modulo_their_size(lane_bytes: int, seed: int, count: int) -> None:
    chance, lanes = np.random.default_rng(seed), Lanes(lane_bytes)
    modulus = 2 ** (8 * lane_bytes)
    rows = [[int.from_bytes(chance.bytes(lane_bytes), "little") for _ in range(count)] for _ in range(4)]
    rows[0][0] = modulus - 1
    rows[1][0] = 1
    chunks = [b"".join(number.to_bytes(lane_bytes, "little") for number in row) for row in rows]
    signs = (1, -1, -1)
    found = lanes.sum(chunks[0], zip(signs, chunks[1:], strict=True))
    wanted = [
        (first + sum(sign * row[index] for sign, row in zip(signs, rows[1:], strict=True))) % modulus
        for index, first in enumerate(rows[0])
    ]
    assert from_lanes(found, lane_bytes).tolist() == wanted
    signed = [number - modulus if number >= modulus // 2 else number for number in wanted]
    assert to_lanes(np.array(signed, np.int64), lane_bytes) == found


def test_a_file_is_masked_in_small_steps_and_masks_cancel() -> None:
    data = np.random.default_rng(0).bytes(2 * CHUNK_BYTES + 40)
    one, other = bytes(32), bytes([9]) * 32
    pieces = list(masked_chunks(io.BytesIO(data), 5, [(1, one), (-1, other)], 1))
    assert pieces.count(b"") == 6, "a look around after each chunk of a mask"
    back = list(masked_chunks(io.BytesIO(b"".join(pieces)), 5, [(-1, one), (1, other)], 100))
    assert b"".join(back) == data != b"".join(pieces)


def test_every_neighbour_has_this_one_too_and_the_ring_follows_the_seed() -> None:
    found = neighbours(20, b"one", 6)
    assert all(len(near) == 6 and node not in near for node, near in enumerate(found))
    assert all(node in found[other] for node, near in enumerate(found) for other in near)
    assert found != neighbours(20, b"other", 6)
    assert neighbours(5, b"", 4) == neighbours(5, b"", 0)


@pytest.mark.parametrize(("count", "degree"), [(4, 0), (30, 0), (100, 42), (300, 74), (1000, 116)])
def test_as_many_neighbours_as_the_chance_of_failure_asks_for(count: int, degree: int) -> None:
    assert degree_for(count, 2 / 3) == degree


def test_two_lists_of_survivors_never_both_have_a_threshold_of_honest_holders() -> None:
    for holders in range(3, 200):
        for share in (0.5, 0.6, 2 / 3, 0.9):
            assert holders >= threshold_of(share, holders) > holders / 2


@pytest.mark.parametrize("weight", [1, 1000, MOST_WEIGHT])
@pytest.mark.parametrize("bound", [0.0, 0.3, 1.0, 1.5, 100.0])
def test_no_sum_that_may_be_goes_round(weight: int, bound: float) -> None:
    for nodes in (3, 30, 300):
        for fraction_bits in (8, 20, 32):
            room = lane_bytes_for(nodes, fraction_bits, bound, weight)
            largest = max(1.0, min(128.0, bound)) if bound else 128.0
            total = min(MOST_WEIGHT, nodes * weight) * largest * 2**fraction_bits
            assert total < 2 ** (8 * room - 1)
            settings_of = SecureRound(
                lane_bytes=room, fraction_bits=fraction_bits, norm_bound=bound, most_examples=weight
            )
            settings_of.require_room(nodes, uniform=weight == 1)
            if room > 4:
                assert total >= 2 ** (8 * (room - 1) - 1) / 2
