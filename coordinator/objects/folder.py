# SPDX-License-Identifier: Apache-2.0
"""A folder as an object store, which a web server serves under an address of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from fedcore.errors import StorageError
from fedcore.system.durable import flush_folder

__all__ = ["FolderStore"]

_UNFINISHED: Final = ".new"


class FolderStore:
    """See `coordinator.objects.base.ObjectStore`.

    Args:
        folder: Made where it is not there.
        public: What the web server calls it.
    """

    def __init__(self, folder: Path, public: str) -> None:
        self._folder, self._public = folder, public.rstrip("/")

    @property
    def place(self) -> str:
        """See `ObjectStore`."""
        return str(self._folder)

    def put(self, name: str, path: Path) -> None:
        """See `ObjectStore`: beside and renamed."""
        to = self._folder / name
        with self._in_our_words():
            if to.exists():
                return
            to.parent.mkdir(parents=True, exist_ok=True)
            beside = to.with_name(to.name + _UNFINISHED)
            shutil.copyfile(path, beside)
            beside.replace(to)
            flush_folder(to.parent)

    def names(self, prefix: str) -> Sequence[str]:
        """See `ObjectStore`."""
        with self._in_our_words():
            found = [path for path in (self._folder / prefix).rglob("*") if path.is_file()]
            return sorted(path.relative_to(self._folder).as_posix() for path in found if path.suffix != _UNFINISHED)

    def drop(self, name: str) -> None:
        """See `ObjectStore`."""
        with self._in_our_words():
            (self._folder / name).unlink(missing_ok=True)

    def address(self, name: str, hold_seconds: float) -> str:
        """See `ObjectStore`."""
        return f"{self._public}/{name}"

    @contextlib.contextmanager
    def _in_our_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot be written: {error.strerror}", place=self.place) from None
