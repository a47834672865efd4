# SPDX-License-Identifier: Apache-2.0
"""Run artefacts: the file that a method may ask for, believed as far as the hash in the plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedcore.errors import ArtefactDamaged
from fedcore.round.training import Training
from fedcore.system.durable import sha256_of
from fedcore.weights.schema import ModelSchema

__all__ = ["read_artefact"]


def read_artefact(path: Path | None, training: Training, schema: ModelSchema) -> Any:
    """What the run's artefact holds, as both halves of its method take it.

    Args:
        path: The file; None for none.
        training: Of a plan: says whether there is an artefact, and its SHA-256.
        schema: The model's.

    Returns:
        What `Training.read_artefact` reads; None in runs without an artefact.

    Raises:
        ArtefactDamaged: No file, or another one.
        MalformedMessage: The right file, and not what a plan promises.
    """
    kind = training.artefact_kind
    if kind is None:
        return None
    if path is None:
        raise ArtefactDamaged(f"the run's artefact ({kind.name}) is not here")
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        raise ArtefactDamaged(f"the run's artefact ({kind.name}) is not here", place=str(path)) from None
    if found != training.artefact:
        raise ArtefactDamaged(
            f"this artefact ({kind.name}) is {found[:12]}, not the run's {training.artefact[:12]}", place=str(path)
        )
    return training.read_artefact(path, schema)
