# SPDX-License-Identifier: Apache-2.0
"""Messages as an older program wrote them, byte by byte: of protocol 3 (plans were not deflated yet), unsigned.

The node is `older`, in run `t`; the coordinator leads run `r` and speaks to node `n`."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["OLDER", "older"]

OLDER = 3
"""Their version of the protocol."""


def older(name: str) -> bytes:
    """`status`, `offer` and `declined` of the node; `plan` and `welcome` of the coordinator."""
    found: dict[str, str] = json.loads(Path(__file__).with_name("protocol3.json").read_text(encoding="utf-8"))
    return bytes.fromhex(found[name])
