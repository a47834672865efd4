# SPDX-License-Identifier: Apache-2.0
"""Where a dashboard listens: `HOST:PORT` in words. Light, since every command line looks at it."""

from __future__ import annotations

import re

from fedcore.errors import ConfigError

__all__ = ["DEFAULT_ADDRESS", "address_of"]

DEFAULT_ADDRESS = "127.0.0.1:8080"


def address_of(text: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ConfigError: Something else.

    Example:
        >>> address_of("[::1]:0"), address_of(":8080")
        (('::1', 0), ('127.0.0.1', 8080))
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:\[\]/]*):(\d{1,5})", text)
    if found is None or int(found[2]) > 65535:
        remedy = f"--dashboard={DEFAULT_ADDRESS}, or --dashboard as the last word"
        raise ConfigError(f"{text!r} is not HOST:PORT", place="--dashboard", remedy=remedy)
    return found[1].strip("[]") or "127.0.0.1", int(found[2])
