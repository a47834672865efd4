# SPDX-License-Identifier: Apache-2.0
"""Which of a plan's addresses a node follows, and how often it tries a server that does not serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge_client.fetching.download import Download
from edge_client.fetching.section import ObjectsSection
from fedcore.web.origins import Origin, split_address
from fedcore.wire.files import PartialFile

__all__ = ["Downloads"]

_REST_SECONDS: Final = 60.0


class Downloads:
    """Begins downloads.

    Args:
        section: Of the node file; without one, nothing is fetched by HTTP.
        woken: Called in a download's thread, once it has ended.
    """

    def __init__(self, section: ObjectsSection | None = None, woken: Callable[[], None] = lambda: None) -> None:
        section = section or ObjectsSection()
        self._allowed, self._ca_file, self._woken = section.allowed, section.ca_file, woken
        self._rests: dict[Origin, float] = {}

    def begin(self, address: str, part: PartialFile, now: float) -> Download | None:
        """Fetch what is missing of a file; None where it is to come through the broker: there is no address, this node
        does not allow it, or its server failed just now.

        Args:
            address: From the plan; empty for none.
            part: The file.
            now: Steady clock, seconds.
        """
        try:
            origin, target = split_address(address)
        except ValueError:
            return None
        if origin not in self._allowed or now < self._rests.get(origin, now):
            return None
        return Download(origin, target, part, self._ca_file, self._woken)

    def ended(self, download: Download, now: float) -> None:
        """A download has ended, by itself: one that failed is not soon tried again.

        Args:
            download: Which.
            now: Steady clock, seconds.
        """
        if download.why:
            self._rests[download.origin] = now + _REST_SECONDS
