# SPDX-License-Identifier: Apache-2.0
"""The master copies of a merged base on disk: one file a layer, and a table with the SHA-256 of each.

A generation is written beside its place, flushed and renamed, so that it is there whole or not at all, also after a
power cut. What a disk does to it later is noticed: sizes when it is opened, hashes when a layer is first used, and
again before anything lasting is made from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from fedcore.errors import BaseDamaged, ModelError
from fedcore.system.durable import flush_folder, write_durably
from fedcore.weights.checkpoint import TensorEntry, hash_entry
from fedcore.weights.schema import LayerSpec

__all__ = ["MasterCopies"]

_TABLE = "masters.json"


class _Row(msgspec.Struct, frozen=True):
    layer: str
    rows: int
    columns: int
    dtype: str
    sha256: str


class MasterCopies:
    """One generation's master copies.

    Args:
        generation: Merges they have seen.
        entries: Where each layer lies, by layer name.
        hashes: SHA-256 of each, by layer name.
    """

    def __init__(self, generation: int, entries: dict[str, TensorEntry], hashes: dict[str, str]) -> None:
        self.generation = generation
        self.hashes = hashes
        self._entries = entries
        self._checked: set[str] = set()

    @classmethod
    def newest(cls, scratch: Path, layers: Sequence[LayerSpec]) -> MasterCopies | None:
        """The newest generation in a folder that is whole as far as sizes tell; None if there is none."""
        numbers = sorted((int(path.name) for path in scratch.glob("[0-9]*") if path.name.isdecimal()), reverse=True)
        found = (cls._open(scratch / str(number), layers) for number in numbers if number > 0)
        return next((copies for copies in found if copies is not None), None)

    @classmethod
    def _open(cls, folder: Path, layers: Sequence[LayerSpec]) -> MasterCopies | None:
        try:
            rows = msgspec.json.decode((folder / _TABLE).read_bytes(), type=list[_Row])
            if [(row.layer, row.rows, row.columns) for row in rows] != [
                (layer.name, layer.rows, layer.columns) for layer in layers
            ]:
                return None
            entries = {row.layer: _entry(folder, index, row.dtype, layers[index]) for index, row in enumerate(rows)}
            if any(entry.file.stat().st_size != entry.size_bytes for entry in entries.values()):
                return None
        except (OSError, KeyError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return cls(int(folder.name), entries, {row.layer: row.sha256 for row in rows})

    @classmethod
    def write(
        cls,
        scratch: Path,
        generation: int,
        layers: Sequence[LayerSpec],
        dtype: Callable[[LayerSpec], str],
        blocks: Callable[[LayerSpec], Iterator[NDArray[Any]]],
    ) -> MasterCopies:
        """Write a generation block by block, and leave only that one in the folder.

        Args:
            scratch: Folder of generations.
            generation: From 1.
            layers: In the schema's order.
            dtype: Of a layer's numbers, in safetensors' words.
            blocks: A layer's rows from the first to the last.

        Raises:
            OSError: No room, or another fault of the disk; earlier generations are as they were.
        """
        place, part = scratch / str(generation), scratch / f"{generation}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            table = []
            for index, layer in enumerate(layers):
                digest = hashlib.sha256()
                entry = _entry(part, index, dtype(layer), layer)
                with entry.file.open("wb") as file:
                    for block in blocks(layer):
                        file.write(block.data)
                        digest.update(block.data)
                    file.flush()
                    os.fsync(file.fileno())
                    assert file.tell() == entry.size_bytes, f"{layer.name}: blocks do not make the layer"
                table.append(_Row(layer.name, layer.rows, layer.columns, entry.dtype, digest.hexdigest()))
            write_durably(part / _TABLE, json.dumps(msgspec.to_builtins(table)).encode())
            # What is there under this name was damaged, or it would not be written again.
            shutil.rmtree(place, ignore_errors=True)
            part.replace(place)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        flush_folder(scratch)
        for old in scratch.glob("[0-9]*"):
            if old != place:
                shutil.rmtree(old, ignore_errors=True)
        entries = {row.layer: _entry(place, index, row.dtype, layers[index]) for index, row in enumerate(table)}
        return cls(generation, entries, {row.layer: row.sha256 for row in table})

    def entry(self, layer: LayerSpec) -> TensorEntry:
        """Where a layer's numbers lie; they are checked at the first call.

        Raises:
            BaseDamaged: They are not those that were written.
        """
        if layer.name not in self._checked:
            self.check(layer)
        return self._entries[layer.name]

    def check(self, layer: LayerSpec) -> None:
        """Hash a layer's numbers.

        Raises:
            BaseDamaged: They are not those that were written.
        """
        entry = self._entries[layer.name]
        try:
            whole = hash_entry(entry) == self.hashes[layer.name]
        except (OSError, ModelError):
            whole = False
        if not whole:
            raise BaseDamaged("this master copy is damaged", place=str(entry.file))
        self._checked.add(layer.name)


def _entry(folder: Path, index: int, dtype: str, layer: LayerSpec) -> TensorEntry:
    return TensorEntry(folder / f"{index}.bin", 0, dtype, (layer.rows, layer.columns))
