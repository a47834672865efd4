# SPDX-License-Identifier: Apache-2.0
"""A run's published objects in an object store: what of them lies there, under which addresses, and since when.

The run's folder has everything, and the broker brings everything: a store only takes large objects off the broker. So
one that fails costs nothing but that, and is left alone for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from coordinator.objects.base import ObjectStore
from coordinator.objects.folder import FolderStore
from coordinator.objects.s3 import S3Store
from coordinator.objects.section import ObjectsSection
from fedcore.errors import StorageError
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import Plan

__all__ = ["Shelf", "open_store"]

_KIND: Final = "objects"
_REST_SECONDS: Final = 60.0
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
    ) -> None:
        self._section, self._prefix, self._note, self._steady = section, prefix, note, steady
        self._store = None if section is None else opened(section)
        self._there: set[str] | None = None
        """Hashes of what is there; None before the store was asked."""
        self._lately: tuple[frozenset[str], frozenset[str]] = frozenset(), frozenset()
        self._rests_until, self._signed_at, self._failed = float("-inf"), float("inf"), False

    def takes(self, path: Path, manifest: Manifest) -> bool:
        """Have an object lie there; whether it does. It is put there if it is large enough.

        Args:
            path: Its file.
            manifest: What it is.
        """
        section, store = self._section, self._store
        if section is None or store is None or manifest.size_bytes < section.least_bytes:
            return False
        if self._there is not None and manifest.sha256 in self._there:
            return True
        if self._steady() < self._rests_until:
            return False
        try:
            if self._there is None:
                self._there = {name.rpartition("/")[2] for name in store.names(self._prefix)}
            if manifest.sha256 not in self._there:
                store.put(self._name(manifest.sha256), path)
                self._there.add(manifest.sha256)
        except StorageError as error:
            self._fails(store, error)
            return False
        if self._failed:
            self._failed = False
            self._note(_KIND, "", f"{store.place}: serves again")
        return True

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
        if self._there is None or self._steady() < self._rests_until:
            return plan
        named = {obj.manifest.sha256 for obj in plan.objects}
        named |= set() if plan.artefact is None else {plan.artefact.manifest.sha256}
        self._keep(store, frozenset(named))
        try:
            found = {sha256: store.address(self._name(sha256), section.hold_seconds) for sha256 in named & self._there}
        except StorageError as error:
            self._fails(store, error)
            return plan
        self._signed_at = self._steady() if found else float("inf")
        return msgspec.structs.replace(plan, addresses=found)

    @property
    def due(self) -> bool:
        """Whether the addresses of the last plan will not hold much longer: it is to be announced again."""
        section, now = self._section, self._steady()
        return section is not None and now > max(self._rests_until, self._signed_at + _RENEWED * section.hold_seconds)

    def _keep(self, store: ObjectStore, named: frozenset[str]) -> None:
        """Who follows the plan before fetches what that one names."""
        if named != self._lately[1]:
            self._lately = self._lately[1], named
        self._drop(store, (self._there or set()) - self._lately[0] - self._lately[1])

    def _drop(self, store: ObjectStore, gone: Iterable[str]) -> None:
        for sha256 in sorted(gone):
            try:
                store.drop(self._name(sha256))
            except StorageError as error:
                self._fails(store, error)
                return
            assert self._there is not None, "what is there goes"
            self._there.discard(sha256)

    def _name(self, sha256: str) -> str:
        return f"{self._prefix}/{sha256}"

    def _fails(self, store: ObjectStore, error: StorageError) -> None:
        self._rests_until = self._steady() + _REST_SECONDS
        if not self._failed:
            self._note(_KIND, "", f"{error.one_line()}; the broker brings all that is new")
        self._failed = True
