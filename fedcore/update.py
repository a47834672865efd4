# SPDX-License-Identifier: Apache-2.0
"""An update: one participant's accumulators and full tensors as a record file, and the checks before it may enter the sum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedcore.accumulator import MAX_EXAMPLES, RunningSum
from fedcore.errors import MalformedMessage, UpdateRefused
from fedcore.plan import Plan
from fedcore.records import Record, read_header, read_records, write_records

__all__ = ["UPDATE_FORMAT", "UpdateHeader", "add_update", "read_update_header", "write_update"]

UPDATE_FORMAT = "fedkrso update 1"
TENSOR_BITS: Final = 16


class UpdateHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What an update says about itself."""

    format: str = UPDATE_FORMAT
    run: str
    round: int
    node: str
    version: int
    """The state it was trained from."""
    examples: int
    rank: int
    subspaces: tuple[int, ...]
    """Indices of the seeds used, in the order of the accumulators' columns."""
    loss: float
    """Mean training loss over the round."""
    seconds: float


def write_update(path: Path, header: UpdateHeader, records: Iterable[Record]) -> None:
    """Write an update file, whole or not at all."""
    write_records(path, msgspec.to_builtins(header), records)


def read_update_header(path: Path, plan: Plan, run: str, node: str) -> UpdateHeader:
    """An update's header, checked against the plan and its sender.

    Raises:
        UpdateRefused: Not an update for this round, or with values outside the plan's bounds.
    """
    try:
        header = msgspec.convert(read_header(path, UPDATE_FORMAT), UpdateHeader)
    except (MalformedMessage, msgspec.ValidationError) as error:
        raise UpdateRefused(f"not an update: {error}", place=node) from None
    training = plan.training
    expected = {"run": run, "round": plan.round, "node": node, "version": plan.version}
    for key, value in expected.items():
        if getattr(header, key) != value:
            raise UpdateRefused(f"{key} is {getattr(header, key)!r} where the plan has {value!r}", place=node)
    if not training.min_rank <= header.rank <= training.rank:
        raise UpdateRefused(f"rank {header.rank} is outside {training.min_rank} to {training.rank}", place=node)
    used = header.subspaces
    if len(set(used)) != len(used) or not used or not all(0 <= k < len(training.seeds) for k in used):
        raise UpdateRefused(f"subspaces {used} are not distinct indices of {len(training.seeds)} seeds", place=node)
    if not 1 <= header.examples <= MAX_EXAMPLES:
        raise UpdateRefused(f"{header.examples} examples is outside 1 to {MAX_EXAMPLES}", place=node)
    return header


@dataclass(frozen=True)
class _Expected:
    shape: tuple[int, int]
    bits: int
    columns: NDArray[np.intp] | slice


def _expected(plan: Plan, header: UpdateHeader) -> dict[str, _Expected]:
    rank = plan.training.rank
    columns = np.concatenate([k * rank + np.arange(header.rank) for k in header.subspaces])
    width = len(columns)
    # A slice adds several times faster than a list of columns; neighbours in order are the usual case.
    contiguous = bool((np.diff(columns) == 1).all())
    where: NDArray[np.intp] | slice = slice(int(columns[0]), int(columns[0]) + width) if contiguous else columns
    out = {s.name: _Expected((s.rows, width), plan.training.bits, where) for s in plan.model_schema.layers}
    return out | {s.name: _Expected(s.matrix, TENSOR_BITS, slice(None)) for s in plan.model_schema.tensors}


def add_update(path: Path, plan: Plan, header: UpdateHeader, total: RunningSum | None) -> None:
    """Check every record of an update and, with `total`, add it to the round's exact sum.

    Call it without a sum first (when the update arrives) and with one when the round closes: nothing of a bad update ever
    reaches the sum.

    Raises:
        UpdateRefused: A record is missing, foreign, repeated, or has another shape or precision than the plan says.
    """
    expected: dict[str, Any] = dict(_expected(plan, header))
    share = header.examples if plan.training.share == "examples" else 1
    if total is not None:
        total.add_examples(share)
    try:
        for record in read_records(path):
            want = expected.pop(record.name, None)
            if want is None:
                raise UpdateRefused("a tensor that the plan does not have, or twice", place=f"{header.node}: {record.name}")
            if record.part.q.shape != want.shape or record.bits != want.bits or record.difference:
                found = "x".join(map(str, record.part.q.shape))
                wanted = "x".join(map(str, want.shape))
                raise UpdateRefused(
                    f"{found} with {record.bits} bits where the plan has {wanted} with {want.bits}",
                    place=f"{header.node}: {record.name}",
                )
            # 2**7 is the largest value that exact sums allow (fedcore.accumulator).
            if (np.abs(record.part.values()) > 2**7).any():
                raise UpdateRefused("a value beyond 128", place=f"{header.node}: {record.name}")
            if total is not None:
                total.add(record.name, record.part, share, want.columns)
    except MalformedMessage as error:
        raise UpdateRefused(str(error), place=header.node) from None
    if expected:
        raise UpdateRefused(f"{len(expected)} tensors are missing, first {min(expected)}", place=header.node)
