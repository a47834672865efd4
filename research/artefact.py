# SPDX-License-Identifier: Apache-2.0
"""The run artefact of a run of the experiment: made once, by the base model, from text without labels, as a coordinator
has it made."""

from __future__ import annotations

from pathlib import Path

from edge_client.worker.methods.artefact import ArtefactSources, make_artefact
from fedcore.system.durable import sha256_of

__all__ = ["artefact_digest"]


def artefact_digest(path: Path, sources: ArtefactSources) -> str:
    """SHA-256 of the artefact that a method asks for, made where its file is not there; empty where it asks for none.

    Args:
        path: Of the file.
        sources: What it is made from; their training is any round's.

    Raises:
        FedkrsoError: What the maker could not do.
    """
    if sources.training.artefact_kind is None:
        return ""
    if not path.exists():
        make_artefact(path, sources)
    return sha256_of(path)
