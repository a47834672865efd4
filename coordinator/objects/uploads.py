# SPDX-License-Identifier: Apache-2.0
"""Updates that nodes put into a run's object store: under which addresses, fetched from there beside the coordinator's
loop, and taken away.

A store only takes updates off the broker, which brings whatever does not come so. What lies there is not believed:
it counts by the hash that its node has offered, and no more of it is read than was offered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from coordinator.objects.aside import Aside
from coordinator.objects.base import TakingStore
from coordinator.objects.outage import Outage
from coordinator.objects.s3 import S3Store
from coordinator.objects.section import ObjectsSection
from fedcore.errors import StorageError
from fedcore.fields.manifest import Manifest
from fedcore.wire.files import is_whole
from fedcore.wire.messages import Offer

__all__ = ["Fetched", "Uploads"]

_AT_ONCE: Final = 4
_LONGEST_SECONDS, _LEAST_BYTES_A_SECOND = 30.0, 128 * 1024
"""A fetch that takes longer is given up: the broker is not so slow."""


_LAST_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Fetched:
    """What came of a fetch.

    Attributes:
        node: Whose update it is.
        offer: As it was to be fetched.
        file: Where it lies, if it is whole: flushed, and nobody else's any more.
        whole: Whether it is what was offered.
        read_bytes: How many came from the store.
    """

    node: str
    offer: Offer
    file: Path
    whole: bool
    read_bytes: int


class Uploads:
    """The store as far as updates are concerned; without one, every update comes through the broker.

    Args:
        section: Of the job; None, or one that wants no updates, for nowhere.
        prefix: Of names, the run's own and no part of that of published objects: `<prefix>/<node>/<transfer>`.
        note: Adds to the event log, by kind, node and words: when the store fails, and when it serves again.
        steady: Seconds of a clock that never goes back.
        opened: Opens the store.
        woken: Called, in another thread, when `collect` may have something.

    Raises:
        ConfigError: It cannot be spoken to from here.
    """

    def __init__(
        self,
        section: ObjectsSection | None,
        prefix: str,
        note: Callable[[str, str, str], None],
        steady: Callable[[], float],
        *,
        opened: Callable[[ObjectsSection], TakingStore] = S3Store,
        woken: Callable[[], None] = lambda: None,
    ) -> None:
        self._section = section if section is not None and section.uploads else None
        self._store = None if self._section is None else opened(self._section)
        self._prefix, self._steady = prefix, steady
        self._fetches: list[Aside[Fetched]] = [Aside(woken) for _ in range(_AT_ONCE)]
        self._wanted: dict[str, tuple[Offer, Path]] = {}
        self._busy: dict[str, tuple[Offer, Path, float]] = {}
        """What is fetched, by node, and until when that is waited for."""
        self._done: list[Fetched] = []
        self._tidying: Aside[Sequence[str]] = Aside(woken)
        self._gone: set[str] = set()
        """Names that are to be taken away."""
        self._counts: Callable[[str], bool] | None = None
        self._outage = Outage(note, steady, "updates", ", for updates")

    def takes(self, manifest: Manifest) -> bool:
        """Whether an object may come by way of the store now.

        Args:
            manifest: What it is.
        """
        section = self._section
        return section is not None and manifest.size_bytes >= section.least_bytes and not self._outage.lasts

    def address(self, node: str, transfer: str) -> str:
        """Where a node may put an object; empty where the store cannot say.

        Args:
            node: Which.
            transfer: Id of the object's.
        """
        section, store = self._section, self._store
        if section is None or store is None:
            return ""
        try:
            return store.address_to_put(self._name(node, transfer), section.hold_seconds)
        except StorageError as error:
            self._outage.begins(error)
            return ""

    def fetch(self, node: str, offer: Offer, path: Path) -> None:
        """Have an object that a node has put there, one of each node at a time; `collect` tells what came of it.

        Args:
            node: Which.
            offer: What it is.
            path: Where it is meant to be: it is put beside.
        """
        self._wanted[node] = offer, path
        self._begin()

    def leave(self, node: str) -> None:
        """A node's object is not wanted any more; what is on its way may still be told."""
        self._wanted.pop(node, None)

    def collect(self) -> list[Fetched]:
        """What has come, or will not; and have taken away what is to be."""
        for one in self._fetches:
            one.collect()
        now = self._steady()
        for node, (offer, path, until) in self._busy.items():
            if now > until:
                # Its thread may hang for longer; what it brings then is not wanted any more.
                self._busy[node] = offer, path, float("inf")
                self._done.append(Fetched(node, offer, path.with_name(f"{path.name}.late"), False, 0))
                self._outage.begins(StorageError("does not serve: too slow", place=self._place))
        if self._outage.lasts:
            # The broker brings them.
            self._done += [
                Fetched(node, offer, self._file(offer, path), False, 0) for node, (offer, path) in self._wanted.items()
            ]
            self._wanted = {}
        self._begin()
        self._tidy()
        done, self._done = self._done, []
        return done

    def drop(self, node: str, transfer: str) -> None:
        """Take an object away, soon."""
        if self._store is not None:
            self._gone.add(self._name(node, transfer))

    def sweep(self, counts: Callable[[str], bool]) -> None:
        """Take away, soon, all whose transfers count no more.

        Args:
            counts: Whether the object of a transfer may; asked in another thread.
        """
        self._counts = counts

    def stop(self) -> None:
        """The run has ended: take away what is left, if that is quickly done."""
        store = self._store
        if store is None or self._outage.lasts or not (self._gone or self._counts):
            return
        done = threading.Event()
        last: Aside[Sequence[str]] = Aside(done.set)
        gone, counts = frozenset(self._gone), self._counts
        last.begin(partial(_drop, store, gone, self._prefix, counts), partial(self._tidied, gone, counts))
        done.wait(_LAST_SECONDS)
        last.collect()

    @property
    def _place(self) -> str:
        return "" if self._store is None else self._store.place

    def _name(self, node: str, transfer: str) -> str:
        return f"{self._prefix}/{node}/{transfer}"

    @staticmethod
    def _file(offer: Offer, path: Path) -> Path:
        """Of this transfer alone: chunks of another may be coming to the same place."""
        return path.with_name(f"{path.name}.{offer.transfer}.fetched")

    def _begin(self) -> None:
        store = self._store
        for one in self._fetches:
            node = next((name for name in self._wanted if name not in self._busy), None)
            if node is None or store is None:
                return
            if not one.busy:
                offer, path = self._wanted.pop(node)
                size = offer.manifest.size_bytes
                until = self._steady() + _LONGEST_SECONDS + size / _LEAST_BYTES_A_SECOND
                self._busy[node] = offer, path, until
                job = partial(_fetch, store, self._name(node, offer.transfer), node, offer, self._file(offer, path))
                one.begin(job, partial(self._came, node))

    def _came(self, node: str, result: Fetched | StorageError) -> None:
        offer, path, _ = self._busy.pop(node)
        if isinstance(result, StorageError):
            self._outage.begins(result)
            result = Fetched(node, offer, self._file(offer, path), False, 0)
        else:
            self._outage.ends(self._place)
        self._done.append(result)

    def _tidy(self) -> None:
        store = self._store
        self._tidying.collect()
        if store is None or self._outage.lasts or self._tidying.busy or not (self._gone or self._counts):
            return
        gone, counts = frozenset(self._gone), self._counts
        self._tidying.begin(partial(_drop, store, gone, self._prefix, counts), partial(self._tidied, gone, counts))

    def _tidied(
        self, gone: frozenset[str], counts: Callable[[str], bool] | None, result: Sequence[str] | StorageError
    ) -> None:
        if isinstance(result, StorageError):
            self._outage.begins(result)
            return
        self._gone -= gone
        self._counts = None if self._counts is counts else self._counts


def _fetch(store: TakingStore, name: str, node: str, offer: Offer, file: Path) -> Fetched:
    file.parent.mkdir(parents=True, exist_ok=True)
    came = store.get(name, file, offer.manifest.size_bytes)
    whole = came and is_whole(file, offer.manifest)
    if whole:
        with file.open("rb") as written:
            os.fsync(written.fileno())
    return Fetched(node, offer, file, whole, offer.manifest.size_bytes if came else 0)


def _drop(store: TakingStore, gone: Iterable[str], prefix: str, counts: Callable[[str], bool] | None) -> Sequence[str]:
    names = set(gone)
    if counts is not None:
        names |= {name for name in store.names(prefix) if not counts(name.rpartition("/")[2])}
    store.drop_all(sorted(names))
    return sorted(names)
