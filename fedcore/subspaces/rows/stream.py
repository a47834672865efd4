# SPDX-License-Identifier: Apache-2.0
"""The bytes that a projection is made from: SHAKE-128 (FIPS 202) over a domain, the seed, the width and the layer's
name."""

from __future__ import annotations

import hashlib

from fedcore.errors import ConfigError

__all__ = ["MAX_SEED", "stream"]

MAX_SEED = 2**64 - 1


def stream(domain: bytes, seed: int, layer: str, r: int, n: int, size_bytes: int) -> bytes:
    """The first bytes of a projection's stream; a longer one begins with the same.

    Args:
        domain: Names the kind and its version.
        seed: Names the subspace, 0 to 2**64 - 1.
        layer: The layer's canonical name; each layer has a stream of its own.
        r: Rank, rows of P; only checked.
        n: Input features, columns of P.
        size_bytes: How many.

    Raises:
        ConfigError: A seed, rank or width outside its range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed {seed} is not an unsigned 64-bit integer", place=layer)
    if r < 1 or not 1 <= n < 2**32:
        raise ConfigError(f"a projection of {r} x {n} does not exist", place=layer)
    return hashlib.shake_128(domain + seed.to_bytes(8, "little") + n.to_bytes(4, "little") + layer.encode()).digest(
        size_bytes
    )
