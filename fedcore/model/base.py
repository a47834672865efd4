# SPDX-License-Identifier: Apache-2.0
"""The base W0: what every replica starts from, and its digest.

The base is a pure function of the checkpoint and its kind. `int8` rounds each target layer by
`fedcore.weights.quantise` (or takes a bitsandbytes 8-bit checkpoint's integers as they are); a float kind casts. What a
generation learned (`fedcore.model.merge`) is merged into a master copy on disk (`fedcore.weights.masters`), some rows
at a time, and the weights are made anew from it: generation g has seen g merges.

What is damaged on disk is never used. Weights in a file are made anew; a generation whose master copies are damaged is
dropped, and its owner begins again at the checkpoint (`reset`) and catches up, or takes the generation from a snapshot
(`replace`)."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ExactnessError, ModelError
from fedcore.fields.types import BaseKind
from fedcore.model.merge import layer_change, merged
from fedcore.model.state import PublishedState
from fedcore.weights.checkpoint import Checkpoint, TensorEntry, from_float32, hash_entry, read_entry, to_float32
from fedcore.weights.masters import MasterCopies
from fedcore.weights.quantise import INT8_MAX, dequantise_weight, quantise_weight
from fedcore.weights.schema import LayerSpec, ModelSchema
from fedcore.weights.weightfile import LayerWeight, WeightFile, hash_numbers

__all__ = ["Base", "LayerWeight", "stored_entry"]

_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Rows that are quantised at a time: whole, a layer would be there several times in float32.
_BLOCK_ROWS = 256


class Base:
    """A checkpoint as the base of a run.

    Args:
        checkpoint: The model folder's tensors.
        schema: Which layers are targets.
        kind: How target layers are held.
        scratch: Folder for master copies of later generations; needed only by methods that merge.
    """

    def __init__(self, checkpoint: Checkpoint, schema: ModelSchema, kind: BaseKind, scratch: Path) -> None:
        self.checkpoint = checkpoint
        self.schema = schema
        self.kind = kind
        self._scratch = scratch
        self._hashes: dict[str, str] = {}
        self._layers = {f"{layer.name}.weight": layer for layer in schema.layers}
        self._stored: WeightFile | None = None
        for layer in schema.layers:
            entry = checkpoint.tensors.get(layer.stored)
            if entry is None or not layer.fits(entry.shape):
                found = "nothing" if entry is None else " x ".join(map(str, entry.shape))
                raise ModelError(
                    f"the plan has {layer.rows} x {layer.columns}, the checkpoint {found}",
                    place=f"{checkpoint.folder}: {layer.stored}",
                    remedy="use the same model folder on all machines",
                )
        self._masters = MasterCopies.newest(scratch, schema.layers)

    @property
    def generation(self) -> int:
        """Merges that this base has seen."""
        return self._masters.generation if self._masters is not None else 0

    def layer(self, layer: LayerSpec, *, mapped: bool = False) -> LayerWeight:
        """A target layer's weight of the present generation.

        Args:
            layer: Which.
            mapped: Give the numbers as pages of a file where there is one: an int8 base after `store`, or a float base
                that is stored in its own dtype.
        """
        if self._stored is not None:
            return self._stored.weight(layer, mapped=mapped)
        entry = stored_entry(self.checkpoint, layer)
        if self.generation == 0 and entry.dtype == "I8":
            scale = to_float32(self.checkpoint.read(f"{layer.name}.SCB"), "F32").reshape(-1) / np.float32(INT8_MAX)
            if self.kind == "int8":
                return read_entry(entry), scale
        if self.kind == "int8":
            return self._quantised(layer)
        if self.generation == 0 and entry.dtype == _STORED[self.kind]:
            if layer.transposed:
                return np.ascontiguousarray(read_entry(entry).T), None
            return read_entry(entry, mapped=mapped), None
        return from_float32(self.master(layer), _STORED[self.kind]), None

    def frozen(self, layer: LayerSpec) -> LayerWeight:
        """The weight of a layer that the schema does not train, in this base's kind; of the checkpoint, whatever was
        merged."""
        alone = ModelSchema((layer,), ())
        return Base(self.checkpoint, alone, self.kind, self._scratch / "frozen").layer(layer)

    def values(self, layer: LayerSpec) -> NDArray[np.float32]:
        """A target layer's weight (m, n) of the present generation as it is multiplied with, rounding to int8 and
        all."""
        numbers, scale = self.layer(layer)
        return to_float32(numbers, _STORED[self.kind]) if scale is None else dequantise_weight(numbers, scale)

    def store(self) -> None:
        """Have the int8 weights of the present generation in one file on disk, made now if it is not there yet.

        From then on layers are read from it, so that a restart need not quantise again; it reads the file once, since a
        damaged one is made anew. Float bases have nothing to store.

        Raises:
            BaseDamaged: The master copies that the file would be made from are damaged.
            ModelError: A layer cannot be quantised, or the file cannot be written.
        """
        if self.kind != "int8" or self._stored is not None:
            return
        folder = self._scratch / str(self.generation)
        stamp = self._stamp()
        stored = WeightFile.open(folder, stamp, self.schema.layers)
        if stored is None or not all(stored.is_whole(layer) for layer in self.schema.layers):
            hashes = {name: self._hash(name) for name, _ in self.others()}
            try:
                stored = WeightFile.make(folder, stamp, self.schema.layers, self.layer, hashes)
            except OSError as error:
                raise ModelError(
                    f"cannot write the int8 weights: {error.strerror}", place=str(folder), remedy="free space there"
                ) from None
        self._stored = stored
        self._hashes.update(stored.hashes)

    def _stamp(self) -> str:
        """Changes when anything does that the weights of this generation are made from."""
        seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.checkpoint.files]
        masters = sorted(self._masters.hashes.items()) if self._masters is not None else []
        layers = [(layer.name, layer.rows, layer.columns) for layer in self.schema.layers]
        return hashlib.sha256(repr((self.generation, self.kind, seen, masters, layers)).encode()).hexdigest()

    def master(self, layer: LayerSpec) -> NDArray[np.float32]:
        """A target layer's float weight (m, n) that merges go into.

        Raises:
            BaseDamaged: The master copy is damaged.
        """
        return self.master_rows(layer, slice(0, layer.rows))

    def master_rows(self, layer: LayerSpec, rows: slice, *, of_checkpoint: bool = False) -> NDArray[np.float32]:
        """Some rows of `master`; with `of_checkpoint` as they were before any merge."""
        entry = self._master_entry(layer, of_checkpoint=of_checkpoint)
        if layer.transposed and (self._masters is None or of_checkpoint):
            # Rows of W are columns of what is stored.
            return to_float32(np.ascontiguousarray(read_entry(entry)[:, rows].T), entry.dtype)
        numbers = _read_rows(entry, rows)
        if entry.dtype == "I8":
            scale = to_float32(self.checkpoint.read(f"{layer.name}.SCB"), "F32").reshape(-1)[rows] / np.float32(
                INT8_MAX
            )
            return np.asarray(numbers.astype(np.float32) * scale[:, None], np.float32)
        return to_float32(numbers, entry.dtype)

    def _master_entry(self, layer: LayerSpec, *, of_checkpoint: bool = False) -> TensorEntry:
        """Where a layer's master copy lies: in the checkpoint, or, after a merge, in a file of its own."""
        if self._masters is None or of_checkpoint:
            return stored_entry(self.checkpoint, layer)
        return self._masters.entry(layer)

    def check_master(self, layer: LayerSpec) -> None:
        """Hash a layer's master copy, before something lasting is made from it.

        Raises:
            BaseDamaged: It is not what was written.
        """
        if self._masters is not None:
            self._masters.check(layer)

    def master_dtype(self, layer: LayerSpec) -> str:
        """The dtype of master copies after a merge, in safetensors' words."""
        return "BF16" if self.checkpoint.tensors[layer.stored].dtype == "BF16" else "F32"

    def _quantised(self, layer: LayerSpec) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """A float layer as int8, from its file in blocks of rows: rows do not depend on each other."""
        q, scale = np.empty((layer.rows, layer.columns), np.int8), np.empty(layer.rows, np.float32)
        for rows in _blocks(layer):
            q[rows], scale[rows] = quantise_weight(self.master_rows(layer, rows), place=f"{layer.name}.weight")
        return q, scale

    def others(self) -> Iterator[tuple[str, TensorEntry]]:
        """The tensors that are not target layers, in name order: kept in the checkpoint's precision."""
        targets = {layer.stored for layer in self.schema.layers}
        targets |= {f"{layer.name}{ending}" for layer in self.schema.layers for ending in (".SCB", ".weight_format")}
        for name in sorted(self.checkpoint.tensors):
            if name not in targets:
                yield name, self.checkpoint.tensors[name]

    def digest(self) -> str:
        """SHA-256 over every tensor in name order: int8 values and scales of target layers, the others as stored."""
        total = hashlib.sha256(f"fedkrso base 1/{self.kind}".encode())
        for name in sorted(
            [*(f"{layer.name}.weight" for layer in self.schema.layers), *(name for name, _ in self.others())]
        ):
            total.update(f"/{name}/{self._hash(name)}".encode())
        return total.hexdigest()

    def _hash(self, name: str) -> str:
        """SHA-256 of a tensor as this base holds it."""
        if name not in self._hashes:
            layer = self._layers.get(name)
            self._hashes[name] = hash_numbers(self.layer(layer)) if layer else hash_entry(self.checkpoint.tensors[name])
        return self._hashes[name]

    def merge(self, state: PublishedState, generation: int) -> None:
        """Merge a finished state into the master copy; afterwards this base is of that generation, also after a power
        cut.

        Merging into a base that is already there does nothing, so a restart may repeat the call.

        Raises:
            BaseDamaged: The master copy is damaged; this base is as it was.
            ExactnessError: The generation is not the next one, or the state cannot be merged exactly.
        """
        if generation == self.generation:
            return
        if generation != self.generation + 1:
            raise ExactnessError(f"a merge to generation {generation} on a base of generation {self.generation}")

        def rows_after(layer: LayerSpec) -> Iterator[NDArray[Any]]:
            self.check_master(layer)
            change, dtype = layer_change(state, layer), self.master_dtype(layer)
            for rows in _blocks(layer):
                yield from_float32(merged(self.master_rows(layer, rows), change(rows)), dtype)

        self.replace(generation, rows_after)

    def replace(self, generation: int, blocks: Callable[[LayerSpec], Iterator[NDArray[Any]]]) -> None:
        """Become another generation, whatever this base was.

        Args:
            generation: From 1.
            blocks: A layer's master copy in `master_dtype` (bfloat16 as uint16), rows from the first to the last. It is
                called for each layer in the schema's order, and may read this base.
        """
        self._take(MasterCopies.write(self._scratch, generation, self.schema.layers, self.master_dtype, blocks))

    def reset(self) -> None:
        """Back to the checkpoint: everything on disk that was made from it is dropped."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._take(None)

    def _take(self, masters: MasterCopies | None) -> None:
        self._masters, self._stored = masters, None
        for name in self._layers:
            self._hashes.pop(name, None)


def stored_entry(checkpoint: Checkpoint, layer: LayerSpec) -> TensorEntry:
    """Where a layer's weight lies in a checkpoint: a tensor, or one expert's part of it; transposed as it is there."""
    entry = checkpoint.tensors[layer.stored]
    if layer.expert is None:
        return entry
    one = TensorEntry(entry.file, entry.offset, entry.dtype, entry.shape[1:])
    return dataclasses.replace(one, offset=entry.offset + layer.expert * one.size_bytes)


def _blocks(layer: LayerSpec) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK_ROWS, layer.rows)) for start in range(0, layer.rows, _BLOCK_ROWS))


def _read_rows(entry: TensorEntry, rows: slice) -> NDArray[Any]:
    """Some rows of a tensor, read from its file; a mapping would count as this process' memory."""
    columns = entry.shape[1]
    row_bytes = entry.size_bytes // entry.shape[0] if entry.shape[0] else 0
    return read_entry(
        TensorEntry(entry.file, entry.offset + rows.start * row_bytes, entry.dtype, (rows.stop - rows.start, columns))
    )
