# SPDX-License-Identifier: Apache-2.0
"""Which version of this software runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["software"]


def software() -> str:
    """The installed version of fedkrso; empty in a checkout that nothing was installed from."""
    try:
        return version("fedkrso")
    except PackageNotFoundError:
        return ""
