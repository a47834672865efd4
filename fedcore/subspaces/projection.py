# SPDX-License-Identifier: Apache-2.0
"""Projections: the subspaces that every machine regenerates from seeds (FedKRSO, arXiv 2602.03019, section 3).

P is a scale times small integers, so that E[P^T P] = I. Signs are Rademacher instead of Gaussian entries, with the same
expectation and the same variance to within (n - 1) / (n + 1). How each kind is made says `fedcore.subspaces.rows`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ExactnessError
from fedcore.subspaces.informed import ROW_BITS, InformedRows
from fedcore.subspaces.rows import KINDS
from fedcore.subspaces.rows.signs import sign_bytes, signs
from fedcore.subspaces.rows.stream import MAX_SEED

__all__ = ["MAX_SEED", "Projection", "projection_of", "sign_bytes", "signs"]


@dataclass(frozen=True)
class Projection:
    """P of a pool, one subspace below the other: scale * 2**exponent[:, None] * rows.

    Attributes:
        rows: int8 (K r, n).
        scale: The factor.
        largest: No entry is beyond.
        exponent: int8 (K r,), or None where all are 0.
    """

    rows: NDArray[np.int8]
    scale: float
    largest: int
    exponent: NDArray[np.int8] | None = None

    def values(self) -> NDArray[np.float64]:
        """P (K r, n) itself."""
        rows = self.rows.astype(np.float64)
        return np.asarray(
            (rows if self.exponent is None else np.ldexp(rows, self.exponent.astype(np.int32)[:, None])) * self.scale
        )

    def checksum(self) -> str:
        """16 hex digits over all numbers."""
        digest = hashlib.sha256(self.rows.tobytes())
        if self.exponent is not None:
            digest.update(self.exponent.tobytes())
        return digest.hexdigest()[:16]


def projection_of(
    rows_from: str, seeds: tuple[int, ...], rank: int, layer: str, columns: int, informed: InformedRows | None = None
) -> Projection:
    """The projection of a pool in one layer.

    Args:
        rows_from: What rows come from (`fedcore.round.training.Training.rows_from`).
        seeds: The pool.
        rank: r.
        layer: Canonical layer name.
        columns: n.
        informed: The run's informed rows, where it has some.

    Raises:
        ConfigError: There is none of this rank and width.
        ExactnessError: No such rows, or informed ones that are not given.
    """
    if rows_from.startswith("informed/"):
        return _informed(seeds, rank, layer, columns, informed)
    kind = KINDS.get("signs" if rows_from.startswith("artefact/") else rows_from)
    if kind is None:
        raise ExactnessError(f"no rows are made from {rows_from!r}", place=layer)
    rows = np.concatenate([kind.rows(seed, layer, rank, columns) for seed in seeds])
    return Projection(rows, kind.scale(rank, columns), kind.largest)


def _informed(seeds: tuple[int, ...], rank: int, layer: str, columns: int, informed: InformedRows | None) -> Projection:
    """Informed rows, and signs for the rest of the pool."""
    part = None if informed is None else informed.get(layer)
    if part is None:
        raise ExactnessError("its informed rows are not here", place=layer)
    rows, exponent = part.rows, part.exponent
    rest = seeds[len(rows) // rank :]
    if rest:
        rows = np.concatenate([rows, *(signs(seed, layer, rank, columns) for seed in rest)])
        exponent = np.concatenate([exponent, np.zeros(len(rest) * rank, np.int8)])
    return Projection(rows, KINDS["signs"].scale(rank, columns), 2**ROW_BITS - 1, exponent)
