# SPDX-License-Identifier: Apache-2.0
"""Makes the run artefact that a method asks for; what makes it is named by the method (`ArtefactKind.maker`)."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edge_client.worker.data.tasks import Encoded
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError
from fedcore.model.base import Base
from fedcore.round.training import Training
from fedcore.system.durable import flush_folder

__all__ = ["ArtefactMaker", "ArtefactSources", "make_artefact"]


@dataclass(frozen=True, kw_only=True)
class ArtefactSources:
    """What an artefact may be made from.

    Attributes:
        training: Of the run's first round.
        base: The base model, of generation 0, with its schema.
        task: What the model does.
        texts: Of `[calibration]`; their targets do not matter. Empty for a kind that is not made from text.
        torch_device: Where to compute.
    """

    training: Training
    base: Base
    task: TaskSection
    texts: Sequence[Encoded]
    torch_device: torch.device


ArtefactMaker = Callable[[Path, ArtefactSources], None]
"""Writes the file at a path."""


def make_artefact(path: Path, sources: ArtefactSources) -> None:
    """Make a run's artefact; the file exists whole or not at all.

    Args:
        path: Of the file.
        sources: What it is made from; its training asks for an artefact.

    Raises:
        ConfigError: The method names a maker that is not there.
        FedkrsoError: What the maker could not do.
    """
    kind = sources.training.artefact_kind
    assert kind is not None, "only a method with an artefact has one made"
    try:
        maker: ArtefactMaker = pkgutil.resolve_name(kind.maker)
    except (ValueError, ImportError, AttributeError) as error:
        remedy = "install the package of this method"
        raise ConfigError(f"no {kind.maker} makes {kind.name}: {error}", place="method.name", remedy=remedy) from None
    part = path.with_name(path.name + ".new")
    maker(part, sources)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    flush_folder(path.parent)
