# SPDX-License-Identifier: Apache-2.0
"""What is served: what a node holds of its run, or a model folder by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_client.memory.sharing import server_folder
from edge_client.node import Node
from edge_client.process.paths import artefact_path
from edge_client.process.published import HeldNote
from fedcore.worker.serving import Held, Load

__all__ = ["FolderSource", "NodeSource", "Source"]


@dataclass(frozen=True)
class FolderSource:
    """A model folder, as it lies there.

    Attributes:
        model_folder: With weights and tokenizer.
        folder: The server's own.
        threads: To compute with.
    """

    model_folder: Path
    folder: Path
    threads: int

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.model_folder.resolve().name

    def held(self) -> Held | None:
        """Of a run: nothing."""
        return None

    def load(self, held: Held | None, room_bytes: int) -> Load:
        """The command that has a worker hold it."""
        return Load(
            model_folder=str(self.model_folder),
            scratch=str(self.folder / "base"),
            threads=self.threads,
            room_bytes=room_bytes,
        )


@dataclass(frozen=True)
class NodeSource:
    """What a node holds: its base and the newest published state that it has taken.

    Attributes:
        node: Its file.
        model_folder: The run's checkpoint on this machine.
        threads: To compute with.
        note: What the agent says that lies on the disk.
    """

    node: Node
    model_folder: Path
    threads: int
    note: HeldNote

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.node.run

    @property
    def folder(self) -> Path:
        """The server's own."""
        return server_folder(Path(self.node.folder))

    def held(self) -> Held | None:
        """The newest state; None while nothing was fetched."""
        return self.note.read(self.node.run)

    def load(self, held: Held | None, room_bytes: int) -> Load:
        """The command that has a worker hold it."""
        folder, serve = Path(self.node.folder), self.node.serve
        return Load(
            model_folder=str(self.model_folder),
            held=held,
            folder=str(folder / "replica"),
            artefact=str(artefact_path(folder)),
            scratch=str(self.folder / "base"),
            data=self.node.data if serve.property_order == "data" else None,
            threads=self.threads,
            max_context=serve.max_context,
            max_tokens=serve.max_tokens,
            room_bytes=room_bytes,
        )


Source = FolderSource | NodeSource
