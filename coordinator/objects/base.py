# SPDX-License-Identifier: Apache-2.0
"""What an object store is, to those who put something into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["ObjectStore"]


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
