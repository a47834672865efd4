# SPDX-License-Identifier: Apache-2.0
"""Checksums of a plan's projections: a machine that computes others refuses the round instead of training in other
subspaces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from fedcore.round.training import DirectionTraining, Training
from fedcore.subspaces.directions import checksum
from fedcore.subspaces.projection import projection_of
from fedcore.subspaces.rows.signs import sign_bytes
from fedcore.weights.schema import ModelSchema

__all__ = ["checksums", "signs_checksum"]


def signs_checksum(seeds: Iterable[int], layer: str, r: int, n: int) -> str:
    """16 hex digits over the signs of all `seeds` of a layer.

    The plan carries it, so that a client whose hash library or byte order differs refuses the round instead of training
    in other subspaces."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(sign_bytes(seed, layer, r, n))
    return digest.hexdigest()[:16]


def checksums(training: Training, schema: ModelSchema, artefact: Any = None) -> tuple[str, ...]:
    """Of the projections of a plan's seeds, by layer; none in methods without seeds.

    Args:
        training: Of the plan.
        schema: The model's.
        artefact: What the run's artefact holds (`fedcore.round.artefact.read_artefact`), where the plan names one.
    """
    if not training.seeds:
        return ()
    training = training.learns
    if isinstance(training, DirectionTraining):
        return tuple(checksum(training.seeds[0], layer) for layer in schema.layers)
    if training.rows_from == "signs":
        # As packed bits: so were the first plans checked.
        return tuple(
            signs_checksum(training.seeds, layer.name, training.rank, layer.columns) for layer in schema.layers
        )
    pool = training.rows_from, training.seeds, training.rank
    made = (projection_of(*pool, layer.name, layer.columns, artefact) for layer in schema.layers)
    return tuple(projection.checksum() for projection in made)
