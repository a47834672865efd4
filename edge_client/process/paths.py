# SPDX-License-Identifier: Apache-2.0
"""Where a node keeps what its worker reads."""

from __future__ import annotations

from pathlib import Path

__all__ = ["artefact_path"]


def artefact_path(folder: Path) -> Path:
    """Where a node keeps its run's artefact."""
    return folder / "artefact.bin"
