# SPDX-License-Identifier: Apache-2.0
"""Which addresses a node follows, down and up, and how often it tries a server that does not serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_client.fetching.download import Download
from edge_client.fetching.exchange import Exchange, Place
from edge_client.fetching.section import ObjectsSection
from edge_client.fetching.upload import Upload
from fedcore.web.origins import Origin, split_address
from fedcore.wire.files import PartialFile

__all__ = ["Servers"]

_REST_SECONDS: Final = 60.0


class Servers:
    """Begins downloads and uploads.

    Args:
        section: Of the node file; without one, nothing goes by HTTP.
        woken: Called in the thread of one, once it has ended.

    Attributes:
        take_updates: Whether the owner lets updates go there.
    """

    def __init__(self, section: ObjectsSection | None = None, woken: Callable[[], None] = lambda: None) -> None:
        section = section or ObjectsSection()
        self._allowed, self._ca_file, self._woken = section.allowed, section.ca_file, woken
        self.take_updates = section.uploads
        self._rests: dict[tuple[type[Exchange], Origin], float] = {}

    def download(self, address: str, part: PartialFile, now: float) -> Download | None:
        """Fetch what is missing of a file; None where it is to come through the broker: there is no address, this node
        does not allow it, or its server failed just now.

        Args:
            address: From the plan; empty for none.
            part: The file.
            now: Steady clock, seconds.
        """
        place = self._place(Download, address, now)
        return None if place is None else Download(place, part, self._woken)

    def upload(self, address: str, path: Path, size_bytes: int, now: float) -> Upload | None:
        """Put a file; None where it is to go through the broker, as of `download`.

        Args:
            address: From a grant.
            path: The file.
            size_bytes: Its length.
            now: Steady clock, seconds.
        """
        place = self._place(Upload, address, now) if self.take_updates else None
        return None if place is None else Upload(place, path, size_bytes, self._woken)

    def ended(self, exchange: Exchange, now: float) -> None:
        """One has ended, by itself: a server that failed is not soon tried again for its like.

        Args:
            exchange: Which.
            now: Steady clock, seconds.
        """
        if exchange.why:
            self._rests[type(exchange), exchange.origin] = now + _REST_SECONDS

    def _place(self, kind: type[Exchange], address: str, now: float) -> Place | None:
        try:
            origin, target = split_address(address)
        except ValueError:
            return None
        if origin not in self._allowed or now < self._rests.get((kind, origin), now):
            return None
        return Place(origin, target, self._ca_file)
