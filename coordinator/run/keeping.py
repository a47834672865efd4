# SPDX-License-Identifier: Apache-2.0
"""What of a run's model outlives a round, a process, a power cut: the round engine's durable half, as an interface.

`coordinator.run.archive.Archive` keeps everything, in a ledger and a run's folder, and goes on after a kill.
`ScratchKeeping` is for a process that has all its participants within itself: an experiment, a test."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from coordinator.messages.publisher import Key, key_of
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow
from coordinator.store.statefile import load_state
from fedcore.errors import BaseDamaged
from fedcore.model.base import Base
from fedcore.model.state import ExactState, PublishedState
from fedcore.round.plan import Plan, StateObject

__all__ = ["LAST_ROUNDS", "Keeping", "ScratchKeeping", "norms_of"]

LAST_ROUNDS = 3
"""Rounds whose norms an update is compared with, beside those of its own."""


class Keeping(Protocol):
    """What `coordinator.run.model.GlobalModel` keeps, and where.

    Attributes:
        folder: Updates, published states, exact states and master copies are files in it.
        objects: What is published, by version and kind.
    """

    folder: RunFolder
    objects: dict[Key, StateObject]

    def resume(self, base: Base, published: int) -> Plan | None:
        """Have a base that was found on disk be the one that the run left off with.

        Args:
            base: As found.
            published: The last round that was closed; 0 for none.

        Returns:
            The plan of the round that was open; None if none was.

        Raises:
            FedkrsoError: It is another run's, or cannot be made anew.
        """
        ...

    def checkpoint_digest(self) -> str:
        """Digest of the base at generation 0; empty where it is not kept."""
        ...

    def load_state(self, version: int) -> ExactState:
        """The exact state of a version.

        Raises:
            RunError: It is not there, or damaged.
        """
        ...

    def save_state(self, state: ExactState) -> None:
        """Keep an exact state: durable when this returns, where anything is."""
        ...

    def publish(self, objects: list[StateObject], row: RoundRow) -> None:
        """Let a round's published objects count, whose files and whose state are written: the instant at which the
        round is over.

        Args:
            objects: Of the new version.
            row: What the round came to.
        """
        ...

    def begin(self, base: Base, state: PublishedState, chunk_bytes: int) -> None:
        """Told where a round begins, after its merge: a snapshot may be due.

        Args:
            base: At the round's generation.
            state: What the round begins with.
            chunk_bytes: Of transfers.
        """
        ...

    def rebuild(self, base: Base, version: int) -> None:
        """Make a damaged base anew, as it was in a round.

        Args:
            base: Damaged.
            version: The round.

        Raises:
            FedkrsoError: That is not possible.
        """
        ...

    def noise_key(self, server_round: int) -> bytes:
        """32 bytes that a round's noise comes from: of the system's generator, drawn once a round and durable when this
        returns, where anything is. A round that is closed again after a kill has the same noise; when it counts, the
        key is forgotten.

        Args:
            server_round: Which.
        """
        ...

    def norms(self, alike: Callable[[int], bool]) -> Sequence[float]:
        """Of the updates of the last rounds that were closed.

        Args:
            alike: Whether a round's updates say the same sort of thing as those that they are compared with.
        """
        ...

    def listed(self, version: int, generation: int) -> tuple[StateObject, ...]:
        """What a plan lists, oldest first.

        Args:
            version: The present one.
            generation: Of the plan.
        """
        ...


class ScratchKeeping:
    """Published objects in memory, files in a folder, and of each only the newest versions; no ledger, no snapshots.

    A plan lists nothing: whoever keeps so little hands published states to its participants itself. Exact states are
    read from the folder, and written by its owner (`coordinator.store.statefile.save_state`) where it wants to go on
    from them.

    Args:
        folder: Of the run.
        keep_published: Newest versions whose files stay; None for all.
    """

    def __init__(self, folder: RunFolder, keep_published: int | None = 1) -> None:
        self.folder, self._keep_published = folder, keep_published
        self.objects: dict[Key, StateObject] = {}
        self._checkpoint_digest = ""
        self._rows: list[RoundRow] = []

    def resume(self, base: Base, published: int) -> Plan | None:
        """See `Keeping`: it is taken as it is; one of another generation is refused by its next merge."""
        if base.generation == 0:
            self._checkpoint_digest = base.digest()
        return None

    def checkpoint_digest(self) -> str:
        """See `Keeping`: known where the run begins, or goes on before its first merge."""
        return self._checkpoint_digest

    def load_state(self, version: int) -> ExactState:
        """See `Keeping`."""
        return load_state(self.folder.state(version))

    def save_state(self, state: ExactState) -> None:
        """See `Keeping`: left to the owner."""

    def publish(self, objects: list[StateObject], row: RoundRow) -> None:
        """See `Keeping`."""
        self.objects |= {key_of(obj): obj for obj in objects}
        self._rows = [*self._rows, row][-LAST_ROUNDS:]
        oldest = 0 if self._keep_published is None else row.round - self._keep_published + 1
        for version, kind in [key for key in self.objects if key[0] < oldest]:
            self.folder.published_state(version, kind).unlink(missing_ok=True)
            del self.objects[version, kind]

    def begin(self, base: Base, state: PublishedState, chunk_bytes: int) -> None:
        """See `Keeping`: no snapshots."""

    def rebuild(self, base: Base, version: int) -> None:
        """See `Keeping`: what it was made from is gone."""
        raise BaseDamaged("the base is damaged, and what it was made from is not kept", place=str(self.folder.base))

    def noise_key(self, server_round: int) -> bytes:
        """See `Keeping`: nothing outlives the process."""
        return secrets.token_bytes(32)

    def norms(self, alike: Callable[[int], bool]) -> Sequence[float]:
        """See `Keeping`."""
        return norms_of(self._rows, alike)

    def listed(self, version: int, generation: int) -> tuple[StateObject, ...]:
        """See `Keeping`."""
        return ()


def norms_of(rows: Sequence[RoundRow], alike: Callable[[int], bool]) -> list[float]:
    """Norms of the updates of the last rounds.

    Args:
        rows: Of the rounds that were closed, oldest first.
        alike: Which rounds count.
    """
    return [norm for row in rows[-LAST_ROUNDS:] if alike(row.round) for norm in row.norms.values()]
