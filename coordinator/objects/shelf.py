# SPDX-License-Identifier: Apache-2.0
"""A run's published objects in an object store: what of them lies there, under which addresses, and since when.

The run's folder has everything, and the broker brings everything: a store only takes large objects off the broker. So
one that fails costs nothing but that, and is left alone for a while. A slow one holds back what names its objects, and
nothing else: it is spoken to beside the coordinator's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from coordinator.objects.aside import Aside
from coordinator.objects.base import ObjectStore
from coordinator.objects.folder import FolderStore
from coordinator.objects.outage import Outage
from coordinator.objects.s3 import S3Store
from coordinator.objects.section import ObjectsSection
from fedcore.errors import StorageError
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import Plan

__all__ = ["Shelf", "open_store"]

_RENEWED: Final = 0.5
"""Of the time for which an address holds."""


def open_store(section: ObjectsSection) -> ObjectStore:
    """The store that a job names.

    Raises:
        ConfigError: It cannot be spoken to from here.
    """
    parts = urlsplit(section.url)
    return FolderStore(Path(parts.path), section.public) if parts.scheme == "file" else S3Store(section)


class Shelf:
    """Where a run's large objects lie beside the broker.

    Args:
        section: Of the job; None for nowhere.
        prefix: Of names, the run's own.
        note: Adds to the event log, by kind, node and words: when the store fails, and when it serves again.
        steady: Seconds of a clock that never goes back.
        opened: Opens the store.
        woken: Called, in another thread, when `settled` may say something else.

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
        opened: Callable[[ObjectsSection], ObjectStore] = open_store,
        woken: Callable[[], None] = lambda: None,
    ) -> None:
        self._section, self._prefix, self._steady = section, prefix, steady
        self._store = None if section is None else opened(section)
        self._aside: Aside[Iterable[str]] = Aside(woken)
        self._there: set[str] | None = None
        """Hashes of what is there; None before the store was asked."""
        self._lately: tuple[frozenset[str], frozenset[str]] = frozenset(), frozenset()
        self._signed_at = float("inf")
        self._outage = Outage(note, steady, "all that is new")

    def settled(self, objects: Iterable[tuple[Path, Manifest]]) -> bool:
        """Have objects lie there, of those that are large enough; whether it is known of all of them that they do, or
        will not. To be asked again until it is.

        Args:
            objects: Files, and what they are.
        """
        section, store = self._section, self._store
        if section is None or store is None:
            return True
        self._aside.collect()
        wanted = [
            (path, manifest.sha256)
            for path, manifest in objects
            if manifest.size_bytes >= section.least_bytes and not self.has(manifest)
        ]
        if not wanted or self._outage.lasts:
            return True
        if not self._aside.busy:
            path, sha256 = wanted[0]
            job = self._names if self._there is None else partial(self._put, store, path, sha256)
            self._aside.begin(job, partial(self._found, store))
        return False

    def has(self, manifest: Manifest) -> bool:
        """Whether an object lies there.

        Args:
            manifest: What it is.
        """
        return self._there is not None and manifest.sha256 in self._there

    def addressed(self, plan: Plan) -> Plan:
        """A plan, with the addresses of what lies there of its objects; what neither it nor the plan before names is
        taken away.

        Args:
            plan: As it is in the ledger, which has no addresses: they run out.
        """
        section, store = self._section, self._store
        if section is None or store is None:
            return plan
        plan = msgspec.structs.replace(plan, addresses={})
        if self._there is None or self._outage.lasts:
            return plan
        named = {obj.manifest.sha256 for obj in plan.objects}
        named |= set() if plan.artefact is None else {plan.artefact.manifest.sha256}
        self._keep(store, frozenset(named))
        try:
            found = {sha256: store.address(self._name(sha256), section.hold_seconds) for sha256 in named & self._there}
        except StorageError as error:
            self._outage.begins(error)
            return plan
        self._signed_at = self._steady() if found else float("inf")
        return msgspec.structs.replace(plan, addresses=found)

    @property
    def due(self) -> bool:
        """Whether the addresses of the last plan will not hold much longer: it is to be announced again."""
        section, now = self._section, self._steady()
        return section is not None and now > max(self._outage.until, self._signed_at + _RENEWED * section.hold_seconds)

    def _keep(self, store: ObjectStore, named: frozenset[str]) -> None:
        """Who follows the plan before fetches what that one names."""
        if named != self._lately[1]:
            self._lately = self._lately[1], named
        assert self._there is not None, "asked before"
        gone = self._there - self._lately[0] - self._lately[1]
        # Another time, where it is busy.
        if gone and not self._aside.busy:
            self._there -= gone
            self._aside.begin(partial(self._drop, store, sorted(gone)), partial(self._dropped, store, gone))

    def _names(self) -> Iterable[str]:
        assert self._store is not None, "asked before"
        return [name.rpartition("/")[2] for name in self._store.names(self._prefix)]

    def _put(self, store: ObjectStore, path: Path, sha256: str) -> Iterable[str]:
        store.put(self._name(sha256), path)
        return [sha256]

    def _drop(self, store: ObjectStore, gone: Iterable[str]) -> Iterable[str]:
        for sha256 in gone:
            store.drop(self._name(sha256))
        return ()

    def _dropped(self, store: ObjectStore, gone: set[str], result: Iterable[str] | StorageError) -> None:
        if isinstance(result, StorageError):
            assert self._there is not None, "something was there"
            self._there |= gone
        self._found(store, result)

    def _found(self, store: ObjectStore, result: Iterable[str] | StorageError) -> None:
        """What the store answered: what it holds besides, or that it does not serve."""
        if isinstance(result, StorageError):
            self._outage.begins(result)
            return
        self._there = (self._there or set()) | set(result)
        self._outage.ends(store.place)

    def _name(self, sha256: str) -> str:
        return f"{self._prefix}/{sha256}"
