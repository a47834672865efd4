# SPDX-License-Identifier: Apache-2.0
"""What an object store is, to those who put something into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["ObjectStore", "TakingStore"]


class ObjectStore(Protocol):
    """Files by name. A name has letters, digits, `.`, `_`, `-` and strokes between its parts; it is written once, and
    what is under it never changes.

    Every method raises StorageError where the store cannot be used, within seconds."""

    @property
    def place(self) -> str:
        """For errors: where it is, without a secret."""
        ...

    def put(self, name: str, path: Path) -> None:
        """Have a file's bytes under a name, whole or not at all; repeating it changes nothing."""
        ...

    def names(self, prefix: str) -> Sequence[str]:
        """What is there, of the names that begin with a prefix and a stroke."""
        ...

    def drop(self, name: str) -> None:
        """Have nothing under a name any more, whether or not there was something."""
        ...

    def address(self, name: str, hold_seconds: float) -> str:
        """Where the object under a name, and nothing else, can be fetched with HTTP's GET; nothing is asked for it.

        Args:
            name: Of an object.
            hold_seconds: For how long; a store whose addresses do not run out takes no notice.
        """
        ...


class TakingStore(ObjectStore, Protocol):
    """A store that others may put an object into, where they are given an address for it."""

    def address_to_put(self, name: str, hold_seconds: float) -> str:
        """Where something can be put under a name, and under no other, with HTTP's PUT; nothing is asked for it.

        Args:
            name: Of an object; who has the address may put another in its place while that holds.
            hold_seconds: For how long.
        """
        ...

    def get(self, name: str, path: Path, size_bytes: int) -> bool:
        """Write an object into a file, and no byte more than is expected; it is neither checked nor flushed.

        Args:
            name: Of an object.
            path: Is written anew.
            size_bytes: What it is expected to have.

        Returns:
            False: there is none, or it has another length.

        Raises:
            OSError: The file cannot be written.
        """
        ...

    def drop_all(self, names: Sequence[str]) -> None:
        """Have nothing under some names any more, whether or not there was something."""
        ...
