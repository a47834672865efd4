# SPDX-License-Identifier: Apache-2.0
"""Where a node keeps what its worker reads."""

from __future__ import annotations

from pathlib import Path

__all__ = ["informed_path"]


def informed_path(folder: Path) -> Path:
    """Where a node keeps its run's informed rows."""
    return folder / "informed.bin"
