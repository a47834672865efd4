# SPDX-License-Identifier: Apache-2.0
"""The int8 weights of a base in one file, made once, layer by layer, and mapped by whoever trains.

Beside it lies what a restart must not have to compute again: the hashes that make the base's digest. A stamp says what
the file was made from; a file with another stamp, or one that was cut short, is made anew."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ModelError
from fedcore.weights.checkpoint import feed_entry, read_entry, read_table, write_safetensors
from fedcore.weights.schema import LayerSpec

__all__ = ["LayerWeight", "WeightFile", "hash_numbers"]

LayerWeight = tuple[NDArray[Any], NDArray[np.float32] | None]
"""int8 (m, n) with scale float32 (m,), or float numbers as stored (bfloat16 as uint16) with None."""

_WEIGHTS, _ABOUT = "weights.safetensors", "weights.json"


class _About(msgspec.Struct, frozen=True):
    """What lies beside the weights."""

    stamp: str
    hashes: dict[str, str]


def hash_numbers(parts: LayerWeight) -> str:
    """SHA-256 over a layer's numbers and, where it has them, its scales."""
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            digest.update(np.ascontiguousarray(part).data if part.size else b"")
    return digest.hexdigest()


class WeightFile:
    """An open weight file.

    Args:
        path: The file.
        hashes: SHA-256 by tensor name, of layers and of all else that belongs to the base's digest.

    Raises:
        ModelError: The file is cut short.
    """

    def __init__(self, path: Path, hashes: Mapping[str, str]) -> None:
        self.hashes = dict(hashes)
        self._table = read_table(path)

    @classmethod
    def open(cls, folder: Path, stamp: str, layers: Sequence[LayerSpec] = ()) -> WeightFile | None:
        """The folder's file, or None if there is none with this stamp that has all `layers`."""
        try:
            about = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=_About)
            if about.stamp != stamp:
                return None
            found = cls(folder / _WEIGHTS, about.hashes)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, ModelError):
            return None
        return found if all(found._holds(layer) for layer in layers) else None

    @classmethod
    def make(
        cls,
        folder: Path,
        stamp: str,
        layers: Sequence[LayerSpec],
        read: Callable[[LayerSpec], LayerWeight],
        hashes: Mapping[str, str],
    ) -> WeightFile:
        """Write the file; one layer is in memory at a time, and a kill in the middle leaves nothing that could be taken
        for it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ABOUT).unlink(missing_ok=True)
        by_name = {layer.name: layer for layer in layers}
        found = dict(hashes)
        scales: dict[str, NDArray[np.float32]] = {}

        def numbers(name: str) -> NDArray[Any]:
            layer_name, _, part = name.rpartition(".")
            if part == "scale":
                return scales.pop(layer_name)
            q, scale = read(by_name[layer_name])
            assert scale is not None, "a weight file holds int8 layers"
            found[name], scales[layer_name] = hash_numbers((q, scale)), scale
            return q

        entries = []
        for layer in layers:
            entries += [
                (f"{layer.name}.weight", "I8", (layer.rows, layer.columns)),
                (f"{layer.name}.scale", "F32", (layer.rows,)),
            ]
        for name, write in (
            (_WEIGHTS, lambda path: write_safetensors(path, entries, numbers)),
            (_ABOUT, lambda path: path.write_text(json.dumps({"stamp": stamp, "hashes": found}), encoding="utf-8")),
        ):
            part = folder / f"{name}.part"
            write(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(folder / name)
        return cls(folder / _WEIGHTS, found)

    def is_whole(self, layer: LayerSpec) -> bool:
        """Whether a layer's numbers are those that were written; reads them piece by piece."""
        digest = hashlib.sha256()
        for part in ("weight", "scale"):
            feed_entry(digest.update, self._table[f"{layer.name}.{part}"])
        return digest.hexdigest() == self.hashes.get(f"{layer.name}.weight")

    def _holds(self, layer: LayerSpec) -> bool:
        weight, scale = (self._table.get(f"{layer.name}.{part}") for part in ("weight", "scale"))
        return (
            weight is not None
            and scale is not None
            and (weight.dtype, weight.shape) == ("I8", (layer.rows, layer.columns))
            and (scale.dtype, scale.shape) == ("F32", (layer.rows,))
            and f"{layer.name}.weight" in self.hashes
        )

    def weight(self, layer: LayerSpec, *, mapped: bool) -> LayerWeight:
        """A layer's int8 (m, n), in memory or mapped, and its scales (m,)."""
        scale: NDArray[np.float32] = read_entry(self._table[f"{layer.name}.scale"])
        return read_entry(self._table[f"{layer.name}.weight"], mapped=mapped), scale
