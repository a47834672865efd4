# SPDX-License-Identifier: Apache-2.0
"""Whether data depend on Python's hash seed, which is another one in every process."""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ["said_with_hash_seeds"]


def said_with_hash_seeds(code: str) -> set[str]:
    """What a program prints in two processes with different hash seeds."""
    return {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
