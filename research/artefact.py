# SPDX-License-Identifier: Apache-2.0
"""The run artefact of a run of the experiment: made once, by the base model, from text without labels, as a coordinator
has it made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.worker.methods.artefact import ArtefactSources, make_artefact
from fedcore.methods import server_half
from fedcore.methods.interface import MethodSettings
from fedcore.round.artefact import read_artefact
from fedcore.round.plan import ArtefactObject
from fedcore.wire.files import manifest_of

__all__ = ["MadeArtefact", "made_artefact"]


@dataclass(frozen=True)
class MadeArtefact:
    """A run's artefact.

    Attributes:
        object: As plans name it.
        content: As both halves of the method take it.
    """

    object: ArtefactObject
    content: Any


def made_artefact(
    path: Path, settings: MethodSettings, sources: ArtefactSources, chunk_bytes: int
) -> MadeArtefact | None:
    """The artefact that a method asks for, if it does; made where its file is not there.

    Args:
        path: Of the file.
        settings: Of the method.
        sources: What it is made from; their training is any round's.
        chunk_bytes: Of transfers.

    Raises:
        FedkrsoError: What the maker could not do.
    """
    if sources.training.artefact_kind is None:
        return None
    if not path.exists():
        make_artefact(path, sources)
    made, schema = ArtefactObject(manifest_of(path, chunk_bytes)), sources.base.schema
    training = server_half(settings, made.manifest.sha256).training(1, sources.training.run_seed)
    return MadeArtefact(made, read_artefact(path, training, schema))
