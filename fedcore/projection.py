# SPDX-License-Identifier: Apache-2.0
"""Projections: the subspaces that every machine regenerates from seeds (FedKRSO, arXiv 2602.03019, section 3).

P is a scale times small integers, so that E[P^T P] = I. By default these are signs: Rademacher instead of Gaussian entries, with the same
expectation and the same variance to within (n - 1) / (n + 1). How each kind is made says `fedcore.projections`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcore.directions import checksum
from fedcore.projections import KINDS
from fedcore.projections.signs import sign_bytes, signs
from fedcore.projections.stream import MAX_SEED
from fedcore.schema import ModelSchema
from fedcore.training import DirectionTraining, Training

__all__ = ["MAX_SEED", "Projection", "checksums", "projection_of", "sign_bytes", "signs", "signs_checksum"]


@dataclass(frozen=True)
class Projection:
    """P of a pool, one subspace below the other: scale times the rows.

    Attributes:
        rows: int8 (K r, n).
        scale: The factor.
        largest: No entry is beyond.
    """

    rows: NDArray[np.int8]
    scale: float
    largest: int

    def checksum(self) -> str:
        """16 hex digits over all numbers."""
        return hashlib.sha256(self.rows.tobytes()).hexdigest()[:16]


def projection_of(rows_from: str, seeds: tuple[int, ...], rank: int, layer: str, columns: int) -> Projection:
    """The projection of a pool in one layer.

    Args:
        rows_from: What rows come from (`fedcore.training.Training.rows_from`).
        seeds: The pool.
        rank: r.
        layer: Canonical layer name.
        columns: n.

    Raises:
        ConfigError: There is none of this rank and width.
    """
    kind = KINDS[rows_from]
    rows = np.concatenate([kind.rows(seed, layer, rank, columns) for seed in seeds])
    return Projection(rows, kind.scale(rank, columns), kind.largest)


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
    """Of the projections of a plan's seeds, by layer; none in methods without seeds."""
    if not training.seeds:
        return ()
    if isinstance(training, DirectionTraining):
        return tuple(checksum(training.seeds[0], layer) for layer in schema.layers)
    if training.rows_from == "signs":
        # As packed bits: so were the first plans checked.
        return tuple(signs_checksum(training.seeds, layer.name, training.rank, layer.columns) for layer in schema.layers)
    made = (projection_of(training.rows_from, training.seeds, training.rank, layer.name, layer.columns) for layer in schema.layers)
    return tuple(projection.checksum() for projection in made)
