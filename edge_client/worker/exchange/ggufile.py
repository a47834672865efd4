# SPDX-License-Identifier: Apache-2.0
"""A GGUF file from outside: opened and checked, and its numbers read a few rows at a time.

The package `gguf` knows how numbers are quantised. Its reader makes an array of every token (2.5 s and 150 MB for
49,152 of them) and says nothing useful of a file that is cut short, so the table is read here."""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ConfigError, ModelError

__all__ = ["GgufFile", "GgufTensor", "Metadatum", "require_gguf"]

_PIECE_NUMBERS: Final = 2**19
"""Numbers that are dequantised at a time: 2 MiB in float32, and a few times that while it is done."""
_VERSIONS: Final = (2, 3)
_MOST_AXES: Final = 4
_ALIGNMENT: Final = 32
_NUMBERS: Final = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_DAMAGED: Final = "copy the file again"


def require_gguf() -> None:
    """Check that the package which knows the format is installed.

    Raises:
        ConfigError: It is not.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ConfigError(
            "GGUF files need the package gguf, which is not installed", remedy="pip install 'fedkrso[gguf]'"
        ) from None


@dataclass(frozen=True)
class Metadatum:
    """A value of a GGUF file's table.

    Attributes:
        value: As Python has it.
        kind: The format's number for its type.
        of_entries: The same of an array's entries; None of what is no array.
    """

    value: Any
    kind: int
    of_entries: int | None = None


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        offset: Its first byte in the file.
        type_name: What its numbers are stored in, such as `Q4_1`.
        shape: Rows first, as torch has it.
        row_bytes: Of a row of its last axis.
    """

    offset: int
    type_name: str
    shape: tuple[int, ...]
    row_bytes: int

    @property
    def rows(self) -> int:
        """All but the last axis."""
        return math.prod(self.shape[:-1])


class GgufFile:
    """A GGUF file's metadata and tensors. All of its table is checked against the file's length.

    Args:
        path: The file.

    Raises:
        ModelError: It is no GGUF file, cut short, damaged, or of a kind that nobody here reads.
        ConfigError: The package gguf is not installed.
    """

    def __init__(self, path: Path) -> None:
        require_gguf()
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.metadata, self.tensors = _Table(data, path).read()
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot be read: {error}", place=str(path)) from None
        self.architecture = str(self.value("general.architecture", ""))

    def value(self, key: str, default: Any = None) -> Any:
        """A metadatum's value."""
        found = self.metadata.get(key)
        return default if found is None else found.value

    def of_model(self, key: str, default: Any = None) -> Any:
        """A metadatum of the architecture, such as `attention.head_count`."""
        return self.value(f"{self.architecture}.{key}", default)

    @property
    def types(self) -> Counter[str]:
        """How many numbers are stored in which type."""
        found = Counter[str]()
        for tensor in self.tensors.values():
            found[tensor.type_name] += math.prod(tensor.shape)
        return found

    @property
    def quantisation(self) -> str:
        """What most of the numbers are stored in."""
        return next((name for name, _ in self.types.most_common(1)), "nothing")

    def pieces(self, name: str) -> Iterator[NDArray[np.float32]]:
        """A tensor's numbers in order, some rows at a time: float32 (rows, columns).

        Each is its block's scale times an integer, plus an offset where the type has one: products and sums of float32,
        one by one, so that all machines get the same bits.

        Raises:
            ModelError: Its type is one that nobody can read.
        """
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType[tensor.type_name]
        step = max(1, _PIECE_NUMBERS // tensor.shape[-1])
        for start in range(0, tensor.rows, step):
            rows = min(step, tensor.rows - start)
            offset = tensor.offset + start * tensor.row_bytes
            stored = np.fromfile(self.path, np.uint8, rows * tensor.row_bytes, offset=offset)
            if len(stored) != rows * tensor.row_bytes:
                raise ModelError("the file is cut short", place=f"{self.path}: {name}", remedy=_DAMAGED)
            try:
                yield np.asarray(dequantize(stored.reshape(rows, -1), kind), np.float32)
            except NotImplementedError:
                raise ModelError(
                    f"numbers of type {tensor.type_name} cannot be read", place=f"{self.path}: {name}"
                ) from None


class _Table:
    """Reads the table that a file begins with."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._at, self._path = data, 0, path

    def read(self) -> tuple[dict[str, Metadatum], dict[str, GgufTensor]]:
        if self._take(4) != b"GGUF":
            raise ModelError("not a GGUF file", place=str(self._path))
        version = self._number("<u4")
        if version not in _VERSIONS:
            raise ModelError(f"GGUF files of version {version} are not read here", place=str(self._path))
        tensors, values = self._number("<u8"), self._number("<u8")
        metadata: dict[str, Metadatum] = {}
        for _ in range(values):
            name = self._text()
            metadata[name] = self._metadatum()
        found = [self._tensor() for _ in range(tensors)]
        alignment = metadata["general.alignment"].value if "general.alignment" in metadata else _ALIGNMENT
        if not isinstance(alignment, int) or alignment < 1:
            raise self._broken(f"an alignment of {alignment}")
        start = -(-self._at // alignment) * alignment
        out: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in found:
            if name in out:
                raise self._broken(f"two tensors named {name[:256]}")
            out[name] = self._placed(name, shape, kind, start + offset)
        return metadata, out

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            known = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise ModelError(
                f"numbers of type {kind}, which is not known here",
                place=f"{self._path}: {name[:256]}",
                remedy="pip install --upgrade gguf",
            ) from None
        if not shape or 0 in shape or shape[-1] % block:
            raise self._broken(f"{name[:256]} of shape {shape} in {known.name}")
        row_bytes = shape[-1] // block * block_bytes
        tensor = GgufTensor(offset, known.name, shape, row_bytes)
        if offset + tensor.rows * row_bytes > len(self._data):
            raise ModelError("the file is cut short", place=f"{self._path}: {name[:256]}", remedy=_DAMAGED)
        return tensor

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self._text(), self._number("<u4")
        if axes > _MOST_AXES:
            raise self._broken(f"a tensor of {axes} axes")
        shape = tuple(self._number("<u8") for _ in range(axes))[::-1]
        return name, shape, self._number("<u4"), self._number("<u8")

    def _metadatum(self) -> Metadatum:
        kind = self._number("<u4")
        if kind != _ARRAY:
            return Metadatum(self._value(kind), kind)
        of_entries, count = self._number("<u4"), self._number("<u8")
        if of_entries == _TEXT:
            return Metadatum([self._text() for _ in range(count)], kind, of_entries)
        if of_entries not in _NUMBERS:
            raise self._broken(f"an array of type {of_entries}")
        dtype = np.dtype(_NUMBERS[of_entries])
        return Metadatum(np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist(), kind, of_entries)

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind not in _NUMBERS:
            raise self._broken(f"a value of type {kind}")
        return self._number(_NUMBERS[kind])

    def _number(self, dtype: str) -> Any:
        kind = np.dtype(dtype)
        return np.frombuffer(self._take(kind.itemsize), kind)[0].item()

    def _text(self) -> str:
        (length,) = struct.unpack("<Q", self._take(8))
        return self._take(length).decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ModelError("the file is cut short or damaged", place=str(self._path), remedy=_DAMAGED)
        self._at += count
        return self._data[self._at - count : self._at]

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"the file is damaged: {what}", place=str(self._path), remedy=_DAMAGED)
