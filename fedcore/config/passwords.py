# SPDX-License-Identifier: Apache-2.0
"""A password that lies in a file of its own."""

from __future__ import annotations

from pathlib import Path

from fedcore.errors import ConfigError

__all__ = ["read_password"]


def read_password(path: Path, key: str) -> str:
    """Read it.

    Args:
        path: The file, which holds nothing else.
        key: That names it, for errors.

    Raises:
        ConfigError: It cannot be read, or others can read it too.
    """
    path = path.expanduser()
    try:
        password = path.read_text(encoding="utf-8").strip()
        readable_by_others = path.stat().st_mode & 0o077
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=f"{key}: {path}") from None
    if readable_by_others:
        raise ConfigError("others can read this password", place=f"{key}: {path}", remedy=f"chmod 600 {path}")
    return password
