# SPDX-License-Identifier: Apache-2.0
"""Emulators for offsite tuning: a model with fewer blocks, made of the blocks of a full one, and the map between them.

The owner keeps the full model. Nodes get its first and last blocks as they are (the adapter, which trains) around a
thinned middle (which does not). What the adapter learned there is put back into the full model (offsite-tuning, Xiao et
al., arXiv 2302.04870; FederatedScope-LLM, arXiv 2309.00363). Which block is which lies in `offsite.json` in the
emulator's folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Tensors, feed_entry

__all__ = ["OFFSITE_FILE", "OffsiteMap", "fingerprint", "kept_blocks", "read_map"]

OFFSITE_FILE: Final = "offsite.json"
"""In an emulator's folder: its `OffsiteMap`."""
_FORM: Final = 1


class OffsiteMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which blocks of a full model an emulator is made of.

    Example:
        >>> found = OffsiteMap(full_sha256="", prefix="encoder.layer.", kept=(0, 2, 5), first=1, last=1)
        >>> found.to_full("encoder.layer.1.output.dense.weight"), found.from_full("encoder.layer.5.output.dense.weight")
        ('encoder.layer.2.output.dense.weight', 'encoder.layer.2.output.dense.weight')
        >>> found.from_full("encoder.layer.3.output.dense.weight") is None, found.to_full("embeddings.weight")
        (True, 'embeddings.weight')
        >>> [found.trains(f"encoder.layer.{block}.output.dense") for block in range(3)]
        [True, False, True]
    """

    full_sha256: str
    """Of the full model (`fingerprint`)."""
    prefix: str
    """What stands before a block's number in the names of its tensors."""
    kept: tuple[int, ...]
    """For each block of the emulator, which of the full model it is."""
    first: int
    """So many blocks at the beginning train."""
    last: int
    """And so many at the end."""
    config: dict[str, Any] = {}
    """Keys of `config.json` that say how many blocks there are, and what each is, as the full model has them."""
    form: int = _FORM

    def __post_init__(self) -> None:
        if self.form != _FORM or min(self.first, self.last) < 0 or self.first + self.last > len(self.kept):
            raise ValueError(f"a map of form {self.form} with {self.first} + {self.last} of {len(self.kept)} blocks")

    def to_full(self, name: str) -> str:
        """The full model's name of a tensor of the emulator."""
        block = self._block(name)
        return name if block is None else self._renumbered(name, block, self.kept[block])

    def from_full(self, name: str) -> str | None:
        """The emulator's name of a tensor of the full model; None where it does not have it."""
        block = self._block(name)
        if block is None:
            return name
        return self._renumbered(name, block, self.kept.index(block)) if block in self.kept else None

    def trains(self, name: str) -> bool:
        """Whether a tensor or layer of the emulator may train: it is in no block of the middle."""
        block = self._block(name)
        return block is None or block < self.first or block >= len(self.kept) - self.last

    @property
    def words(self) -> str:
        """For a person.

        Example:
            >>> OffsiteMap(full_sha256="", prefix="h.", kept=(0, 1, 4, 5), first=1, last=1).words
            '4 blocks, of the full model 0, 1, 4, 5; the first 1 and the last 1 train'
        """
        kept = ", ".join(map(str, self.kept))
        ends = f"the first {self.first} and the last {self.last} train"
        return f"{len(self.kept)} blocks, of the full model {kept}; {ends}"

    def _block(self, name: str) -> int | None:
        found = re.match(rf"{re.escape(self.prefix)}(\d+)\.", name)
        return None if found is None else int(found[1])

    def _renumbered(self, name: str, block: int, to: int) -> str:
        return f"{self.prefix}{to}{name[len(self.prefix) + len(str(block)) :]}"


def kept_blocks(blocks: int, first: int, last: int, middle: int) -> tuple[int, ...]:
    """The blocks of an emulator: the first and the last, and of those between them some, evenly spread.

    Of L blocks in the middle k are kept: number i is int(i (L - 1) / (k - 1)), as FederatedScope-LLM has it; one alone
    is the middle one.

    Args:
        blocks: Of the full model.
        first: Kept at its beginning.
        last: Kept at its end.
        middle: How many of the others are kept.

    Raises:
        ModelError: There are not so many.

    Example:
        >>> kept_blocks(6, 1, 1, 2), kept_blocks(24, 2, 2, 4), kept_blocks(6, 2, 0, 0)
        ((0, 1, 4, 5), (0, 1, 2, 8, 14, 21, 22, 23), (0, 1))
        >>> kept_blocks(6, 1, 1, 1), kept_blocks(6, 1, 1, 4)
        ((0, 2, 5), (0, 1, 2, 3, 4, 5))
    """
    between = blocks - first - last
    if min(first, last, middle) < 0 or first + last < 1:
        raise ModelError(f"{first} blocks first, {last} last, {middle} between them: none would train")
    if between < max(middle, 1):
        raise ModelError(
            f"{first} blocks first, {last} last and {max(middle, 1)} between them, of a model of {blocks}",
            remedy="keep fewer",
        )
    spread = [(between - 1) // 2] if middle == 1 else []
    if middle > 1:
        spread = [index * (between - 1) // (middle - 1) for index in range(middle)]
    return (*range(first), *(first + index for index in spread), *range(blocks - last, blocks))


def read_map(folder: Path) -> OffsiteMap | None:
    """An emulator's map; None for a folder that is no emulator.

    Raises:
        ModelError: It is damaged.
    """
    path = folder / OFFSITE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=OffsiteMap)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"no map of an emulator: {error}", place=str(path), remedy="fedkrso coordinator offsite writes it"
        ) from None


def fingerprint(checkpoint: Tensors) -> str:
    """SHA-256 over all tensors in name order, whatever files they lie in: names, types, shapes, numbers.

    Raises:
        ModelError: A file is cut short.
    """
    digest = hashlib.sha256(b"fedkrso offsite 1")
    for name in sorted(checkpoint.tensors):
        entry = checkpoint.tensors[name]
        digest.update(f"\0{name}\0{entry.dtype}\0{entry.shape}\0".encode())
        feed_entry(digest.update, entry)
    return digest.hexdigest()
