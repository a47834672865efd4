# SPDX-License-Identifier: Apache-2.0
"""A store in memory, and work beside a loop that is done when a test lets it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coordinator.objects.section import ObjectsSection
from fedcore.errors import StorageError

SECTION = ObjectsSection(url="s3://bucket", least="1B", uploads=True)


class Store:
    """A bucket in memory."""

    place = "store"

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.away = False

    def _ask(self) -> None:
        if self.away:
            raise StorageError("does not serve", place=self.place)

    def put(self, name: str, path: Path) -> None:
        raise AssertionError("the coordinator puts no update")

    def names(self, prefix: str) -> Sequence[str]:
        self._ask()
        return sorted(name for name in self.held if name.startswith(f"{prefix}/"))

    def drop(self, name: str) -> None:
        self.drop_all([name])

    def drop_all(self, names: Sequence[str]) -> None:
        self._ask()
        for name in names:
            self.held.pop(name, None)

    def address(self, name: str, hold_seconds: float) -> str:
        raise AssertionError("nobody fetches an update")

    def address_to_put(self, name: str, hold_seconds: float) -> str:
        return f"https://s3/{name}"

    def get(self, name: str, path: Path, size_bytes: int) -> bool:
        self._ask()
        data = self.held.get(name, b"")
        path.write_bytes(data[:size_bytes])
        return len(data) == size_bytes


class Beside:
    """As `coordinator.objects.aside.Aside`, in this thread: a job is done when it is let."""

    let: Callable[[], bool] = staticmethod(lambda: True)

    def __init__(self, woken: Callable[[], None]) -> None:
        self._begun: tuple[Callable[[], Any], Callable[[Any], None]] | None = None

    @property
    def busy(self) -> bool:
        return self._begun is not None

    def begin(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        assert self._begun is None
        self._begun = job, then

    def collect(self) -> None:
        if self._begun is None or not Beside.let():
            return
        (job, then), self._begun = self._begun, None
        try:
            result = job()
        except StorageError as error:
            result = error
        then(result)
