# SPDX-License-Identifier: Apache-2.0
"""`[objects]` of a job file: a store that nodes fetch published states from, and may put their updates into."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import msgspec

from fedcore.config.reading import parse_size
from fedcore.config.sections import PathText
from fedcore.errors import ConfigError
from fedcore.web.origins import split_address

__all__ = ["ObjectsSection"]

_LONGEST_SECONDS: Final = 7 * 86_400.0
"""S3 signs for no longer."""


class ObjectsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[objects]`: a store beside the broker, from which nodes fetch what is large; without it, the broker brings
    everything."""

    url: str
    """`s3://bucket` or `s3://bucket/prefix`; or `file:///folder`, which a web server serves."""
    endpoint: str = ""
    """S3: the store's address, `https://s3.example.org:8333`; left out: Amazon's of the region."""
    public: str = ""
    """The address where nodes find it: of S3 only if it is another than `endpoint`; of a folder what the web server
    calls it, `https://files.example.org/fedkrso`."""
    region: str = "us-east-1"
    """S3: part of what is signed."""
    key_id: str = ""
    """S3: whose key signs; left out: AWS_ACCESS_KEY_ID of the environment, or the machine's role."""
    secret_file: PathText | None = None
    """S3: file that holds that key's secret alone."""
    least: str = "256 KiB"
    """Smaller objects go through the broker."""
    hold_seconds: float = 3600.0
    """How long an address holds at most; it is renewed before."""
    uploads: bool = False
    """S3: nodes whose owners let them put their updates there too, by an address that each gets for its own; the
    broker then brings words alone."""

    def __post_init__(self) -> None:
        if "@" in self.url:
            # It is not repeated: errors are printed and logged.
            remedy = "write key_id, and secret_file with a file that only you can read"
            raise ConfigError("an address has no key in it", place="objects.url", remedy=remedy)
        parts = urlsplit(self.url)
        if parts.scheme not in ("s3", "file") or parts.query or parts.fragment:
            raise ConfigError(
                f"{self.url[:80]!r} is no store", place="objects.url", remedy="s3://bucket/prefix, or file:///folder"
            )
        if (parts.scheme == "s3") != bool(parts.netloc) or (parts.scheme == "file" and parts.path in ("", "/")):
            remedy = "s3://bucket/prefix, or file:///folder with three strokes"
            raise ConfigError(f"{self.url[:80]!r} names no place", place="objects.url", remedy=remedy)
        if parts.scheme == "file" and not self.public:
            remedy = "what the web server calls the folder: https://files.example.org/fedkrso"
            raise ConfigError("nodes need an address", place="objects.public", remedy=remedy)
        if parts.scheme == "file" and self.uploads:
            remedy = "leave it out: the broker brings updates; or name a store of S3"
            raise ConfigError("a folder takes no updates of nodes", place="objects.uploads", remedy=remedy)
        if bool(self.key_id) != (self.secret_file is not None):
            key = "objects.secret_file" if self.key_id else "objects.key_id"
            raise ConfigError("a key has two halves", place=key, remedy="write key_id and secret_file, or neither")
        for key in ("endpoint", "public"):
            if address := getattr(self, key):
                _check(address, f"objects.{key}")
        if not 60 <= self.hold_seconds <= _LONGEST_SECONDS:
            words = f"hold_seconds is {self.hold_seconds:g}, outside 60 to {_LONGEST_SECONDS:.0f}"
            raise ConfigError(words, place="objects.hold_seconds")
        parse_size(self.least, place="objects.least")

    @property
    def least_bytes(self) -> int:
        """`least` as a number."""
        return parse_size(self.least, place="objects.least")


def _check(address: str, place: str) -> None:
    try:
        _, target = split_address(address)
    except ValueError as error:
        raise ConfigError(f"{address[:80]!r}: {error}", place=place, remedy="https://host:port") from None
    if "?" in target:
        raise ConfigError("an address has nothing after a ? here", place=place)
