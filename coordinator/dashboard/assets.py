# SPDX-License-Identifier: Apache-2.0
"""The page's files, in memory: few and small, so that no request ever becomes a path."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Asset", "load_assets"]

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
_WORTH_BYTES = 1024


@dataclass(frozen=True)
class Asset:
    """A file as it is served."""

    data: bytes
    squeezed: bytes | None
    """The same by gzip, where that is smaller."""
    kind: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """The page's files by their path below `static`; other files are not served."""
    return dict(_below(Path(__file__).with_name("static"), ""))


def _below(folder: Path, path: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    if not folder.is_dir():
        return found
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _below(entry, f"{path}{entry.name}/")
        elif kind := _TYPES.get(entry.suffix):
            found.append((path + entry.name, _asset(entry.read_bytes(), kind)))
    return found


def _asset(data: bytes, kind: str) -> Asset:
    small = gzip.compress(data, mtime=0) if len(data) >= _WORTH_BYTES else data
    return Asset(data, small if len(small) < len(data) else None, kind, f'"{hashlib.sha256(data).hexdigest()[:20]}"')
