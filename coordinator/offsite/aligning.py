# SPDX-License-Identifier: Apache-2.0
"""An emulator's middle, brought nearer to the full model's in a worker process: the coordinator has no torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fedcore.config.sections import DataSection
from fedcore.worker.asking import ask_worker
from fedcore.worker.exchange import AlignEmulator, EmulatorAligned

__all__ = ["align_emulator"]


def align_emulator(
    full: Path, folder: Path, data: DataSection, rows: int, steps: int, learning_rate: float
) -> EmulatorAligned:
    """Have an emulator aligned.

    Args:
        full: The full model.
        folder: The emulator, whose weights are written anew.
        data: Texts; labels are not looked at.
        rows: How many, at most.
        steps: Of 16 texts each.
        learning_rate: The largest.

    Raises:
        FedkrsoError: It cannot be aligned; why.
    """
    command = AlignEmulator(
        full=str(full),
        folder=str(folder),
        data=data,
        rows=rows,
        steps=steps,
        learning_rate=learning_rate,
        threads=os.cpu_count() or 1,
    )
    with tempfile.TemporaryDirectory() as scratch:
        answer = ask_worker(command, Path(scratch) / "align.log")
    assert isinstance(answer, EmulatorAligned)
    return answer
