# SPDX-License-Identifier: Apache-2.0
"""Projections: the random subspaces that every machine regenerates from a seed.

P (r, n) has entries +1 and -1, used as P / sqrt(r) so that E[P^T P] = I (FedKRSO, arXiv 2602.03019, section 3, with
Rademacher instead of Gaussian entries: the same expectation and variance to within (n - 1) / (n + 1)). The signs are bits of
SHAKE-128 (FIPS 202), so they are the same in every language, library version and device: no float transform, no
generator state, no dependence on the order of layers. Row j does not depend on r, so that a device with less memory can
train the first rows of the same subspace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedcore.directions import checksum
from fedcore.errors import ConfigError
from fedcore.schema import ModelSchema
from fedcore.training import DirectionTraining, Training

__all__ = ["MAX_SEED", "checksums", "sign_bytes", "signs", "signs_checksum"]

_DOMAIN = b"fedkrso projection 1"
MAX_SEED = 2**64 - 1


def sign_bytes(seed: int, layer: str, r: int, n: int) -> bytes:
    """The r x ceil(n / 8) bytes that hold the signs, least significant bit first, bit 1 for -1.

    Args:
        seed: Names the subspace, 0 to 2**64 - 1.
        layer: The layer's canonical name; each layer has signs of its own.
        r: Rank, rows of P.
        n: Input features, columns of P; the padding bits of each row's last byte are unused.

    Raises:
        ConfigError: A seed, rank or width outside its range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed {seed} is not an unsigned 64-bit integer", place=layer)
    if r < 1 or not 1 <= n < 2**32:
        raise ConfigError(f"a projection of {r} x {n} does not exist", place=layer)
    shake = hashlib.shake_128(_DOMAIN + seed.to_bytes(8, "little") + n.to_bytes(4, "little") + layer.encode())
    return shake.digest(r * -(-n // 8))


def signs(seed: int, layer: str, r: int, n: int) -> NDArray[np.int8]:
    """P's signs as int8 (r, n), entries +1 and -1.

    Example:
        >>> signs(7, "encoder.layer.0.output.dense", 2, 5).shape
        (2, 5)
    """
    packed = np.frombuffer(sign_bytes(seed, layer, r, n), dtype=np.uint8).reshape(r, -1)
    bits = np.unpackbits(packed, axis=1, count=n, bitorder="little")
    bits *= 2
    return np.asarray(1 - bits.view(np.int8), np.int8)


def signs_checksum(seeds: Iterable[int], layer: str, r: int, n: int) -> str:
    """16 hex digits over the signs of all `seeds` of a layer.

    The plan carries it, so that a client whose hash library or byte order differs refuses the round instead of training in
    other subspaces.
    """
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(sign_bytes(seed, layer, r, n))
    return digest.hexdigest()[:16]


def checksums(training: Training, schema: ModelSchema) -> tuple[str, ...]:
    """Of the signs of a plan's seeds, by layer; none in methods without seeds."""
    if not training.seeds:
        return ()
    if isinstance(training, DirectionTraining):
        return tuple(checksum(training.seeds[0], layer) for layer in schema.layers)
    return tuple(signs_checksum(training.seeds, layer.name, training.rank, layer.columns) for layer in schema.layers)
