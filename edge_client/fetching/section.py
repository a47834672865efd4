# SPDX-License-Identifier: Apache-2.0
"""`[objects]` of a node file: servers that published states may be fetched from, and updates put to."""

from __future__ import annotations

import msgspec

from fedcore.config.sections import PathText
from fedcore.errors import ConfigError
from fedcore.web.origins import Origin, origin_of

__all__ = ["ObjectsSection"]


class ObjectsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[objects]`: where this node may fetch published states, beside the broker. A plan says where one lies; it counts
    if the server is named here, and what comes counts by the hash in the plan."""

    origins: tuple[str, ...] = ()
    """`https://s3.example.org` or `https://s3.example.org:8333`, and no other host, scheme or port; without TLS an IP
    address or `localhost` alone. Empty: the broker brings everything."""
    ca_file: PathText | None = None
    """Certificate authority of these servers; the system's by default."""
    uploads: bool = False
    """Put this node's updates there too, where a coordinator gives an address: who runs the server then sees them, as
    who runs the broker does otherwise."""

    def __post_init__(self) -> None:
        for origin in self.origins:
            origin_of(origin, "objects.origins")
        if self.uploads and not self.origins:
            remedy = "name the server in objects.origins, or leave uploads out"
            raise ConfigError(
                "updates are put to servers that are named, and none is", place="objects.uploads", remedy=remedy
            )

    @property
    def allowed(self) -> frozenset[Origin]:
        """The servers."""
        return frozenset(origin_of(origin, "objects.origins") for origin in self.origins)
