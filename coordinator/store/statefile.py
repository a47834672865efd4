# SPDX-License-Identifier: Apache-2.0
"""The exact state as a file in a run's folder."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import RunError
from fedcore.model.state import ExactState
from fedcore.system.durable import flush_folder

__all__ = ["load_state", "save_state"]

# What NumPy and zipfile raise on a file that is not what it was; a damaged shape asks for more memory than there is.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


def save_state(path: Path, state: ExactState) -> None:
    """Write the exact state beside `path`, flush it and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    arrays: dict[str, NDArray[Any]] = {f"sum/{name}": array for name, array in state.sums.items()}
    arrays |= {f"exponent/{name}": array for name, array in state.exponents.items()}
    arrays |= {f"velocity/{name}": array for name, array in state.velocity.items()}
    arrays |= {f"table/{name}": array for name, array in state.tables.items()}
    if state.windowed:
        arrays |= {f"window/{name}": array for name, array in state.window.items()}
        arrays["windowed"] = np.array(state.windowed)
    head = np.array([state.version, state.rank], np.uint64)
    arrays |= {
        "seeds": np.array(state.seeds, np.uint64),
        "rows_from": np.array(state.rows_from),
        "bits": np.array(state.bits),
    }
    with part.open("wb") as file:
        np.savez(file, head=head, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    flush_folder(path.parent)


def load_state(path: Path) -> ExactState:
    """Read what `save_state` wrote.

    Raises:
        RunError: Missing or damaged.
    """
    try:
        # Opened here: NumPy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            version, rank = (int(x) for x in stored["head"])
            sums, exponents, velocity, tables, window = (
                {key[len(kind) :]: stored[key] for key in stored.files if key.startswith(kind)}
                for kind in ("sum/", "exponent/", "velocity/", "table/", "window/")
            )
            windowed = int(stored["windowed"]) if window else 0
            # States of before there were other rows than signs, and other widths than 16 bits, do not say it.
            rows_from = str(stored["rows_from"]) if "rows_from" in stored.files else "signs"
            bits = int(stored["bits"]) if "bits" in stored.files else 16
            if not 8 <= bits <= 16:
                raise ValueError(f"{bits} bits a number")
            seeds = tuple(int(s) for s in stored["seeds"])
            return ExactState(
                version, seeds, rank, sums, exponents, velocity, rows_from, bits, tables, window, windowed
            )
    except _DAMAGED as error:
        raise RunError(f"the exact state cannot be read: {error}", place=str(path)) from None
