# SPDX-License-Identifier: Apache-2.0
"""What a run keeps, as far as messages are concerned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coordinator.messages.publisher import Objects
from coordinator.objects.uploads import Uploads
from coordinator.secure.leading import Leading
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import Ledger

__all__ = ["Kept", "Note"]


class Note(Protocol):
    """Adds to a run's event log."""

    def __call__(self, kind: str, node: str, text: str, server_round: int | None = None) -> None:
        """What happened, of which node; of the round that is open, unless another is named."""
        ...


@dataclass(frozen=True)
class Kept:
    """What a run keeps, of which a message may ask or to which it may add.

    Attributes:
        folder: Where updates lie.
        ledger: Where they are noted.
        objects: What is published; kept up to date by its owner.
        secure: The exchange of secure aggregation.
        uploads: The store that updates may come by.
    """

    folder: RunFolder
    ledger: Ledger
    objects: Objects
    secure: Leading
    uploads: Uploads
