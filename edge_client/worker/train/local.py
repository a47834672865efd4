# SPDX-License-Identifier: Apache-2.0
"""What a method leaves on its node (a factor of its own, a head): named tensors on disk, one file for each round that
was trained.

A round begins with what an earlier round left, never with what an interrupted attempt at the same round left: trained
again after a kill, or opened again by the coordinator, it ends the same. A file that is damaged, or of another run,
counts as not there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from fedcore.system.durable import write_durably

__all__ = ["LocalTensors"]

_HASH_BYTES: Final = 32


class LocalTensors:
    """One node's tensors in one run.

    Args:
        folder: Of all that is kept on this machine.
        key: Names run and node, and what else makes these tensors others.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self._key = hashlib.sha256(key).digest()
        self._folder = folder / self._key.hex()[:16]

    def load(self, before: int | None = None) -> dict[str, NDArray[Any]]:
        """What the newest round left, of those before a given one; nothing if there is none."""
        for number in sorted(self._rounds(), reverse=True):
            if before is None or number < before:
                found = self._read(number)
                if found is not None:
                    return found
        return {}

    def save(self, server_round: int, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Write what a round left, and drop all but it and the one before it; it is on disk when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        write_durably(self._path(server_round), self._hash(data) + data)
        earlier = max((number for number in self._rounds() if number < server_round), default=server_round)
        for number in self._rounds() - {server_round, earlier}:
            self._path(number).unlink()

    def _read(self, server_round: int) -> dict[str, NDArray[Any]] | None:
        data = self._path(server_round).read_bytes()
        return load(data[_HASH_BYTES:]) if data[:_HASH_BYTES] == self._hash(data[_HASH_BYTES:]) else None

    def _hash(self, data: bytes) -> bytes:
        return hashlib.sha256(self._key + data).digest()

    def _path(self, server_round: int) -> Path:
        return self._folder / f"{server_round}.local"

    def _rounds(self) -> set[int]:
        return {int(path.stem) for path in self._folder.glob("*.local") if path.stem.isdecimal()}
