# SPDX-License-Identifier: Apache-2.0
"""From what a command names to a server: the node or folder looked at, the budget judged, the address taken."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_client.memory.limits import budget_bytes
from edge_client.node import Node
from edge_client.owner.serving import ServeSection, training_bytes
from edge_client.process.packages import require_serving_packages, require_training_packages
from edge_client.process.published import HeldNote
from edge_client.serving.memory import ServingMemory
from edge_client.serving.source import FolderSource, NodeSource, Source
from fedcore.config.models import resolve_model_folder
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError
from fedcore.system.locks import owned
from fedcore.worker.imported import imported_models, model_folder

__all__ = ["Service", "folder_service", "node_service"]


@dataclass(frozen=True)
class Service:
    """What is to be served, and with what memory.

    Attributes:
        source: What is served.
        section: Where and how.
        budget_bytes: The node's, or the folder's.
        node_folder: Of the node, if there is one.
        node: The node's id; empty without one.
    """

    source: Source
    section: ServeSection
    budget_bytes: int
    node_folder: Path | None
    node: str

    def run(self, names: tuple[str, ...], say: Callable[[str], None]) -> None:
        """Answer until SIGTERM or SIGINT.

        Raises:
            FedkrsoError: The packages for it are not installed, the address is taken, the token file is wrong, or this
                node is served already.
        """
        require_serving_packages()
        from edge_client.serving.server import serve

        memory = ServingMemory.of(self.budget_bytes, self.section, self.node_folder)
        owner = f"the server of {self.node or self.source.name}"
        with owned(self.source.folder, owner, remedy="stop that one first"):
            serve(self.source, memory, names, say)


def node_service(node_file: Path, changes: Mapping[str, Any]) -> Service:
    """A node's.

    Args:
        node_file: NODE.toml.
        changes: Keys of `[serve]` that were typed.

    Raises:
        FedkrsoError: The file is wrong, or what it names is not there.
    """
    require_training_packages()
    node = load_config(node_file, Node)
    section = _changed(node.serve, changes)
    node = msgspec.structs.replace(node, serve=section)
    budget = budget_bytes(node.memory_budget, place=f"{node_file}: memory_budget")
    training_bytes(budget, section)
    folder = Path(node.folder)
    found = model_folder(node.model_folder, imported_models(folder), place=f"{node_file}: model_folder")
    threads = section.threads or node.threads or os.cpu_count() or 1
    return Service(NodeSource(node, found, threads, HeldNote(folder)), section, budget, folder, node.node)


def folder_service(model: str, memory_budget: str, changes: Mapping[str, Any]) -> Service:
    """A model folder's.

    Args:
        model: A Hugging Face folder, or `package:folder`.
        memory_budget: For server and worker.
        changes: Keys of `[serve]` that were typed.

    Raises:
        FedkrsoError: There is no such folder, or the budget cannot be.
    """
    require_training_packages()
    folder = resolve_model_folder(model, place="--model")
    section = _changed(ServeSection(), changes)
    # Gone with the process: nothing of a folder that is served need be kept.
    scratch = _SCRATCH.enter_context(tempfile.TemporaryDirectory(prefix="fedkrso-serve-"))
    source = FolderSource(folder, Path(scratch), os.cpu_count() or 1)
    return Service(source, section, budget_bytes(memory_budget, place="--memory-budget"), None, "")


_SCRATCH = ExitStack()


def _changed(section: ServeSection, changes: Mapping[str, Any]) -> ServeSection:
    try:
        return msgspec.structs.replace(section, **changes)
    except ConfigError as error:
        raise ConfigError(error.message, place=error.place.replace("serve.", "--"), remedy=error.remedy) from None
