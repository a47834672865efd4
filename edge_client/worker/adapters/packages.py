# SPDX-License-Identifier: Apache-2.0
"""The package `peft`, which only adapters need."""

from __future__ import annotations

from typing import Any

from fedcore.errors import ModelError

__all__ = ["peft_package"]


def peft_package() -> Any:
    """PEFT.

    Raises:
        ModelError: It is not installed.
    """
    try:
        import peft
    except ImportError as error:
        remedy = "pip install 'fedkrso[peft]'"
        raise ModelError(f"this job trains an adapter of PEFT: {error}", place="method.peft", remedy=remedy) from None
    return peft
