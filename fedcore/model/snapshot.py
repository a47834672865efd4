# SPDX-License-Identifier: Apache-2.0
"""A merged base as one file, for who missed more merges than it weighs.

It holds the master copies of a generation and the state that the generation began with, so whoever takes it stands
exactly where a replica stands that merged every time. What is written of a weight is the difference of its bits to the
checkpoint's: every replica has the checkpoint, and training moves weights little. As whole numbers, with small changes
of either sign made small, and with bytes of equal weight together, a bfloat16 model after a change of 1 % takes 0.36 of
its size and a float32 one 0.68; compressed as they are, 0.72 and 0.86.

The file is a record file (`fedcore.numbers.records`): first what a merge leaves in the state (tensors trained whole),
then layers in the schema's order, in blocks of rows. A writer and a reader hold one block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ExactnessError, MalformedMessage
from fedcore.fields.formats import SNAPSHOT
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import RowScaled
from fedcore.numbers.records import Record, pack_record, read_header, read_records, write_records
from fedcore.round.training import Training, merged_entries
from fedcore.weights.checkpoint import from_float32
from fedcore.weights.schema import LayerSpec

__all__ = ["SNAPSHOT_FORMAT", "snapshot_bytes", "take_snapshot", "write_snapshot"]

SNAPSHOT_FORMAT: Final = f"fedkrso snapshot {SNAPSHOT}"
_BLOCK_BYTES: Final = 2**20
# Higher levels save two percent and take three times as long.
_LEVEL: Final = 1


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format: str = SNAPSHOT_FORMAT
    version: int
    generation: int
    seeds: tuple[int, ...]
    rank: int


def write_snapshot(path: Path, base: Base, state: PublishedState) -> None:
    """Write a base and the state that its generation begins with: whole, flushed and renamed, or not at all.

    Args:
        path: The file.
        base: Of generation 1 or later.
        state: Refreshed: what was merged is zero in it, in the subspaces of the base's generation.

    Raises:
        BaseDamaged: The master copies are damaged.
        ExactnessError: The state has learned something that is not merged.
    """
    if any(state.entries[name].q.any() for name in merged_entries(base.schema) & state.entries.keys()):
        raise ExactnessError("a snapshot is of a state that was merged", place=path.name)
    header = _Header(version=state.version, generation=base.generation, seeds=state.seeds, rank=state.rank)
    write_records(path, msgspec.to_builtins(header), _records(base, state), level=_LEVEL)


def snapshot_bytes(base: Base) -> int:
    """About what a snapshot of a base weighs, from a block of each layer."""
    total = 0
    for layer in base.schema.layers:
        rows = next(_blocks(base, layer))
        packed = pack_record(_block(base, layer, rows), _LEVEL)
        total += len(packed["data"]) * layer.rows // (rows.stop - rows.start)
    return total


def take_snapshot(path: Path, base: Base, training: Training) -> PublishedState:
    """Make a base the one of a snapshot.

    Args:
        path: What `write_snapshot` wrote.
        base: Any generation of the same checkpoint; as before if anything is wrong with the file.
        training: Of the generation that the snapshot is promised to be of.

    Returns:
        The state that the generation begins with.

    Raises:
        MalformedMessage: Damaged, of another generation, or of another model.
    """
    try:
        header = msgspec.convert(read_header(path, SNAPSHOT_FORMAT), _Header)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"not a snapshot: {error}", place=path.name) from None
    if (header.generation, header.seeds, header.rank) != (training.generation, training.seeds, training.rank):
        raise MalformedMessage(
            f"a snapshot of generation {header.generation} where the plan has {training.generation}", place=path.name
        )
    zero = PublishedState.zero(training, base.schema)
    kept = {name: part.q.shape for name, part in zero.entries.items() if name not in merged_entries(base.schema)}
    records = read_records(path, largest=max(_largest(base), *map(math.prod, kept.values()), 0))
    entries: dict[str, RowScaled] = {}
    for name in sorted(kept):
        record = next(records, None)
        if record is None or record.name != name or record.integers.q.shape != kept[name] or record.difference:
            raise MalformedMessage("a snapshot without a part of the state", place=f"{path.name}: {name}")
        entries[name] = record.integers
    base.replace(
        training.generation,
        lambda layer: _masters(base, layer, records, path.name, last=layer == base.schema.layers[-1]),
    )
    return PublishedState(
        header.version, training.seeds, training.rank, {**zero.entries, **entries}, training.rows_from
    )


def _records(base: Base, state: PublishedState) -> Iterator[Record]:
    for name in sorted(state.entries.keys() - merged_entries(base.schema)):
        yield Record(name, state.entries[name], 16)
    for layer in base.schema.layers:
        base.check_master(layer)
        for rows in _blocks(base, layer):
            yield _block(base, layer, rows)


def _blocks(base: Base, layer: LayerSpec) -> Iterator[slice]:
    """A layer's rows in blocks of a bounded size, or one row where that is larger."""
    step = max(1, _BLOCK_BYTES // (layer.columns * _words(base, layer) * 2))
    return (slice(start, min(start + step, layer.rows)) for start in range(0, layer.rows, step))


def _words(base: Base, layer: LayerSpec) -> int:
    """16-bit words in a number of a master copy."""
    return 1 if base.master_dtype(layer) == "BF16" else 2


def _largest(base: Base) -> int:
    """Numbers in the largest block of a layer."""
    return max((_BLOCK_BYTES, *(layer.columns * _words(base, layer) for layer in base.schema.layers)))


def _bits(base: Base, layer: LayerSpec, rows: slice, *, of_checkpoint: bool) -> NDArray[Any]:
    """Rows of a master copy as unsigned integers of their own width."""
    numbers = from_float32(base.master_rows(layer, rows, of_checkpoint=of_checkpoint), base.master_dtype(layer))
    return numbers.view(np.uint16 if _words(base, layer) == 1 else np.uint32)


def _block(base: Base, layer: LayerSpec, rows: slice) -> Record:
    change = _bits(base, layer, rows, of_checkpoint=False) - _bits(base, layer, rows, of_checkpoint=True)
    # 0, -1, 1, -2, ... as 0, 1, 2, 3, ...: the high bytes of small changes are zero.
    signed = change.view(np.int16 if change.itemsize == 2 else np.int32)
    merged = ((signed << 1) ^ (signed >> (8 * change.itemsize - 1))).view(change.dtype)
    words = merged if change.itemsize == 2 else np.concatenate([merged & 0xFFFF, merged >> 16])
    q = words.astype(np.uint16).view(np.int16)
    return Record(f"{layer.name}/{rows.start}", RowScaled(q, np.zeros(len(q), np.int8)), 16, difference=True)


def _numbers(base: Base, layer: LayerSpec, rows: slice, record: Record) -> NDArray[Any]:
    """What `_block` was made from, in the master copy's dtype."""
    words = np.ascontiguousarray(record.integers.q).view(np.uint16)
    origin = _bits(base, layer, rows, of_checkpoint=True)
    half = len(words) // 2
    merged = words if origin.itemsize == 2 else words[:half] | (words[half:].astype(np.uint32) << np.uint32(16))
    one = origin.dtype.type(1)
    change = (merged >> one) ^ (~(merged & one) + one)
    total: NDArray[Any] = origin + change
    return total


def _masters(
    base: Base, layer: LayerSpec, records: Iterator[Record], place: str, *, last: bool
) -> Iterator[NDArray[Any]]:
    for rows in _blocks(base, layer):
        record = next(records, None)
        shape = ((rows.stop - rows.start) * _words(base, layer), layer.columns)
        if (
            record is None
            or record.name != f"{layer.name}/{rows.start}"
            or record.integers.q.shape != shape
            or not record.difference
        ):
            raise MalformedMessage("a snapshot without a part of the model", place=f"{place}: {layer.name}")
        yield _numbers(base, layer, rows, record)
    if last and next(records, None) is not None:
        raise MalformedMessage("a snapshot with more than the model", place=place)
