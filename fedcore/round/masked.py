# SPDX-License-Identifier: Apache-2.0
"""A masked update's file: what it says about itself, then lanes of masked integers. No NumPy: the agent writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
from msgspec import Meta

from fedcore.errors import UpdateRefused
from fedcore.fields.checked import clean_text
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.round.secure import EXTRA_LANES
from fedcore.round.training.base import numbers

__all__ = ["MaskedHeader", "header_bytes", "lanes_bytes", "masked_start", "require_masked"]

_FORMAT: Final = "fedkrso masked update 1"
_MOST_HEADER_BYTES: Final = 4096


class MaskedHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a masked update says about itself; nothing of it comes from the text."""

    format: str = _FORMAT
    run: str
    run_id: str
    round: int
    node: str
    version: int
    attempt: Annotated[str, Meta(max_length=128)]


def lanes_bytes(plan: Plan) -> int:
    """Bytes of all lanes of an update in a round with secure aggregation."""
    assert plan.secure is not None
    count = numbers(plan.training.update_shapes(plan.model_schema)) + EXTRA_LANES
    return count * plan.secure.lane_bytes


def header_bytes(plan: Plan, run: str, node: str) -> bytes:
    """What stands before the lanes: its length in two bytes, and the header."""
    header = MaskedHeader(
        run=run, run_id=plan.run_id, round=plan.round, node=node, version=plan.version, attempt=plan.key
    )
    packed = msgspec.msgpack.encode(header)
    return len(packed).to_bytes(2, "little") + packed


def masked_start(file: BinaryIO) -> bytes:
    """Read what stands before the lanes, and leave the file at the first of them."""
    return file.read(min(_MOST_HEADER_BYTES, int.from_bytes(file.read(2), "little")))


def require_masked(path: Path, plan: Plan, run: str, node: str) -> UpdateHeader:
    """Check all that can be checked of a masked update: whose it is, of what, and its size.

    Returns:
        What the ledger keeps of it. Examples and loss are not known of one node, and 0.

    Raises:
        UpdateRefused: It is none of this attempt.
    """
    want = header_bytes(plan, run, node)
    with path.open("rb") as file:
        found = masked_start(file)
    if found != want[2:] or path.stat().st_size != len(want) + lanes_bytes(plan):
        try:
            header = msgspec.msgpack.decode(found, type=MaskedHeader)
            words = f"a masked update of attempt {clean_text(header.attempt)} by {clean_text(header.node)}"
        except (msgspec.DecodeError, UnicodeDecodeError):
            words = "not a masked update"
        raise UpdateRefused(f"{words}, {path.stat().st_size} bytes, is none for attempt {plan.key}", place=node)
    return UpdateHeader(
        run=run,
        run_id=plan.run_id,
        round=plan.round,
        node=node,
        version=plan.version,
        examples=0,
        loss=0.0,
        seconds=0.0,
    )
