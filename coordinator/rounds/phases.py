# SPDX-License-Identifier: Apache-2.0
"""What a run can be doing, and which phase may follow which."""

from __future__ import annotations

from typing import Literal

__all__ = ["TRANSITIONS", "Phase"]

Phase = Literal["waiting", "open", "closing", "finishing", "finished"]
TRANSITIONS: frozenset[tuple[Phase, Phase]] = frozenset(
    {
        ("waiting", "open"),
        ("waiting", "finishing"),
        ("open", "open"),
        ("open", "closing"),
        ("closing", "open"),
        ("closing", "finishing"),
        ("closing", "waiting"),
        ("finishing", "finished"),
    }
)
