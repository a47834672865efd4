# SPDX-License-Identifier: Apache-2.0
"""Reading and writing checkpoints in the safetensors format, tensor by tensor, without torch.

The safetensors package cannot give bfloat16 to NumPy, and maps files in ways that count as this process' memory; the
format itself is a length, a JSON table and raw numbers, so it is read here directly. Pickled checkpoints are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedcore.errors import ModelError

__all__ = [
    "NUMPY_TYPES",
    "Checkpoint",
    "Size",
    "TensorEntry",
    "Tensors",
    "feed_entry",
    "from_float32",
    "hash_entry",
    "read_entry",
    "read_table",
    "to_float32",
    "write_safetensors",
]

# 16 MiB are 100,000 tensors in a file. A header's table takes about 20 times its size in memory.
_MAX_HEADER_BYTES = 16 * 2**20
_MAX_CONFIG_BYTES = 16 * 2**20
# bfloat16 has no NumPy type: it is carried as its 16 bits.
NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: file, first byte, dtype in safetensors' words, shape."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers."""
        # Python's integers: a product that wraps around would fit any file.
        return math.prod(self.shape) * np.dtype(NUMPY_TYPES[self.dtype]).itemsize


Size = Annotated[int, Meta(ge=0, le=2**48)]


class _FileTensor(msgspec.Struct):
    dtype: str
    shape: Annotated[list[Size], Meta(max_length=32)]
    data_offsets: tuple[Size, Size]


class Tensors(Protocol):
    """Named tensors of a model's folder: a checkpoint, or the outline of one."""

    folder: Path
    tensors: dict[str, TensorEntry]

    def read(self, name: str, *, mapped: bool = False) -> NDArray[Any]:
        """A tensor's numbers as stored."""
        ...


class Checkpoint:
    """A Hugging Face model folder's tensors by name.

    Raises:
        ModelError: No such folder, no weights in it, only pickled weights, or a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ModelError(
                "no such model folder", place=str(folder), remedy="set model.folder to a Hugging Face model folder"
            )
        self.config = _read_config(folder / "config.json")
        files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
        if not files:
            pickled = sorted(p.name for p in folder.glob("*.bin"))
            why = f"only pickled weights ({pickled[0]}), which are never loaded" if pickled else "no weights"
            raise ModelError(
                f"the model folder has {why}", place=str(folder), remedy="put the *.safetensors files there"
            )
        self.files = files
        self.tensors: dict[str, TensorEntry] = {}
        for file in files:
            self.tensors.update(read_table(file))

    def read(self, name: str, *, mapped: bool = False) -> NDArray[Any]:
        """A tensor's numbers as stored (bfloat16 as uint16): a copy in memory, or the file's own pages, read-only.

        Raises:
            ModelError: No such tensor.
        """
        entry = self.tensors.get(name)
        if entry is None:
            raise ModelError(f"no tensor {name!r} in the checkpoint", place=str(self.folder))
        return read_entry(entry, mapped=mapped)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(
            "the model folder has no config.json", place=str(path.parent), remedy="point at a Hugging Face model folder"
        )
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ModelError(f"more than {_MAX_CONFIG_BYTES} bytes", place=str(path))
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"not JSON: {error}", place=str(path)) from None
    if not isinstance(config, dict):
        raise ModelError("not a JSON object", place=str(path))
    return config


def read_entry(entry: TensorEntry, *, mapped: bool = False) -> NDArray[Any]:
    """A tensor's numbers as stored.

    Args:
        entry: Where it lies.
        mapped: Map the file read-only instead of reading it: an `np.memmap`, whose pages the kernel can drop. Numbers
            that do not lie at a multiple of their size are read all the same.

    Raises:
        ModelError: The file is shorter than when its table was read.
    """
    dtype = np.dtype(NUMPY_TYPES[entry.dtype])
    count = entry.size_bytes // dtype.itemsize
    if mapped and count and entry.offset % dtype.itemsize == 0:
        return np.memmap(entry.file, dtype, "r", entry.offset, entry.shape)
    numbers = np.fromfile(entry.file, dtype, count, offset=entry.offset)
    if len(numbers) != count:
        raise ModelError("the file is cut short", place=str(entry.file), remedy="copy it again")
    return numbers.reshape(entry.shape)


def hash_entry(entry: TensorEntry) -> str:
    """SHA-256 of a tensor's numbers as stored, read piece by piece: neither a copy nor a mapping of it is in memory.

    Raises:
        ModelError: The file is cut short.
    """
    digest = hashlib.sha256()
    feed_entry(digest.update, entry)
    return digest.hexdigest()


def feed_entry(update: Callable[[bytes], None], entry: TensorEntry) -> None:
    """Give a tensor's numbers as stored to a hash, piece by piece.

    Raises:
        ModelError: The file is cut short.
    """
    left = entry.size_bytes
    with entry.file.open("rb") as file:
        file.seek(entry.offset)
        while left:
            piece = file.read(min(left, 2**20))
            if not piece:
                raise ModelError("the file is cut short", place=str(entry.file), remedy="copy it again")
            update(piece)
            left -= len(piece)


def read_table(file: Path) -> dict[str, TensorEntry]:
    """Where each tensor of a file lies: inside the file, one after the other, as its shape and dtype say.

    Raises:
        ModelError: Not a safetensors file, cut short, or with tensors that overlap.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_MAX_HEADER_BYTES, size):
            raise ModelError("the file is cut short or not safetensors", place=str(file), remedy="copy it again")
        try:
            table = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            table.pop("__metadata__", None)
            rows = {name: msgspec.json.decode(raw, type=_FileTensor) for name, raw in table.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"not a safetensors file: {error}", place=str(file)) from None
    out, end = {}, 0
    for name, row in sorted(rows.items(), key=lambda item: item[1].data_offsets):
        if row.dtype not in NUMPY_TYPES:
            raise ModelError(f"dtype {row.dtype[:32]} is not supported", place=f"{file}: {name[:256]}")
        entry = TensorEntry(file, 8 + length + row.data_offsets[0], row.dtype, tuple(row.shape))
        if row.data_offsets[1] - row.data_offsets[0] != entry.size_bytes or entry.offset + entry.size_bytes > size:
            raise ModelError("the file is cut short", place=f"{file}: {name[:256]}", remedy="copy it again")
        if row.data_offsets[0] < end:
            raise ModelError("two tensors overlap", place=f"{file}: {name[:256]}", remedy="copy it again")
        end = row.data_offsets[1]
        out[name] = entry
    return out


def to_float32(numbers: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored numbers as float32, exactly (F64 is rounded)."""
    if dtype == "BF16":
        wide = numbers.astype(np.uint32)
        # In place: a second array would be a peak as large as the result.
        return np.left_shift(wide, 16, out=wide).view(np.float32)
    return numbers.astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 as stored numbers of a float dtype, half to even; bfloat16 as uint16."""
    if dtype != "BF16":
        return values.astype(NUMPY_TYPES[dtype])
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]], read: Any) -> None:
    """Write tensors one at a time: `tensors` gives (name, dtype, shape), `read(name)` the numbers as stored."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order, offset = [], 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(NUMPY_TYPES[dtype]).itemsize
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        order.append(name)
        offset += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in order:
            np.ascontiguousarray(read(name)).tofile(file)
