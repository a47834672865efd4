# SPDX-License-Identifier: Apache-2.0
"""Data functions for the fault tests: long texts, and a function that leaks after the examples are given out."""

from __future__ import annotations

import threading
import time
from typing import Any

from examples.voice_intents import data

KEPT: list[bytearray] = []


def long(**arguments: Any) -> list[dict[str, str]]:
    """Texts that fill the job's length, so that what training keeps depends on the plan."""
    return [{**row, "text": " and ".join([row["text"]] * 12)} for row in data.home(**arguments)]


def leaky(**arguments: Any) -> list[dict[str, str]]:
    threading.Thread(target=leak, daemon=True).start()
    return long(**arguments)


def leak() -> None:
    time.sleep(9)
    while True:
        # Written, not only reserved.
        KEPT.append(bytearray(b"x" * (3 * 2**20)))
        time.sleep(0.1)
