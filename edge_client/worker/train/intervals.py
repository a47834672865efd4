# SPDX-License-Identifier: Apache-2.0
"""Finished intervals on disk, so that a worker that is killed in the middle of a round trains none of them again.

One file an interval: what the method keeps of it, the tensors trained whole with their Adam, and the loss so far.
Numbers are float32 as they are in memory: a round that was interrupted ends with the same update, bit for bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.methods.interface import adam_state, restore_adam
from edge_client.worker.train.replica import Replica
from fedcore.errors import ModelError
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import TensorEntry, read_entry, read_table, write_safetensors

__all__ = ["FinishedIntervals", "Progressed", "round_key"]


class Progressed(msgspec.Struct, frozen=True, kw_only=True):
    """What an interval's file says beside its tensors."""

    key: str
    interval: int
    rank: int
    loss: float
    """Sum of the losses of all steps so far."""
    sha256: str = ""
    """Over all else in the file, so that one which a disk has damaged is not gone on from."""


def round_key(plan: Plan, run: str, node: str, examples: int, length: int, computes: str) -> str:
    """What finished intervals belong to: anything that would make their continuation another round changes it."""
    of_plan = (plan.round, plan.version, plan.base_digest, plan.training, plan.task)
    return hashlib.sha256(msgspec.msgpack.encode((run, node, *of_plan, examples, length, computes))).hexdigest()


class FinishedIntervals:
    """The folder of a round's finished intervals; those of other rounds in it are removed.

    Args:
        folder: Of this node.
        key: Of the round.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, interval: int, loss: float, replica: Replica, whole: torch.optim.Adam | None) -> None:
        """Write an interval that is finished; it is on disk when this returns.

        Args:
            interval: From 0.
            loss: Sum of the losses of all steps so far.
            replica: As it is now.
            whole: Adam of the tensors trained whole.
        """
        tensors = {name: tensor.detach().cpu().numpy() for name, tensor in _interval_tensors(interval, replica, whole)}
        progressed = Progressed(key=self._key, interval=interval, rank=replica.half.rank, loss=loss)
        progressed = msgspec.structs.replace(progressed, sha256=_sha256(progressed, tensors, tensors.__getitem__))
        path = self._folder / f"{interval}.safetensors"
        part = path.with_suffix(".part")
        header = np.frombuffer(msgspec.msgpack.encode(progressed), np.uint8)
        entries = [("progress", "U8", header.shape), *((name, "F32", tensor.shape) for name, tensor in tensors.items())]
        write_safetensors(part, entries, lambda name: header if name == "progress" else tensors[name])
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        if replica.half.supersedes:
            (self._folder / f"{interval - 1}.safetensors").unlink(missing_ok=True)

    def restore(self, replica: Replica, whole: torch.optim.Adam | None) -> list[Progressed]:
        """Put back what finished intervals left, in order; the first gap or foreign file ends it.

        Returns:
            What was put back, the oldest first.
        """
        found: list[Progressed] = []
        for interval in self._there(supersedes=replica.half.supersedes):
            loaded = self._load(interval)
            if loaded is None:
                break
            progressed, table = loaded

            def tensor_of(name: str, table: dict[str, TensorEntry] = table) -> Tensor:
                return torch.from_numpy(read_entry(table[name]))

            replica.half.restore(interval, progressed.rank, tensor_of)
            found.append(progressed)
        for path in self._folder.iterdir():
            if path.name not in {f"{p.interval}.safetensors" for p in found}:
                path.unlink()
        if found:
            self._restore_tensors(found[-1].interval, replica, whole)
        return found

    def clear(self) -> None:
        """The round's update is written: nothing is needed any more."""
        for path in self._folder.iterdir():
            path.unlink()

    def _there(self, *, supersedes: bool) -> list[int]:
        """The intervals to look at, in order: all from the first on, or only the last."""
        numbers = sorted(int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdecimal())
        if supersedes:
            return numbers[-1:]
        return [number for place, number in enumerate(numbers) if number == place]

    def _load(self, interval: int) -> tuple[Progressed, dict[str, TensorEntry]] | None:
        path = self._folder / f"{interval}.safetensors"
        if not path.exists():
            return None
        try:
            table = read_table(path)
            progressed = msgspec.msgpack.decode(read_entry(table["progress"]).tobytes(), type=Progressed)
        except (ModelError, msgspec.DecodeError, UnicodeDecodeError, KeyError):
            # Torn by a power cut: that interval is trained again.
            return None
        ours = progressed.key == self._key and progressed.interval == interval
        whole = ours and progressed.sha256 == _sha256(
            progressed, table.keys() - {"progress"}, lambda name: read_entry(table[name])
        )
        return (progressed, table) if whole else None

    def _restore_tensors(self, interval: int, replica: Replica, whole: torch.optim.Adam | None) -> None:
        table = read_table(self._folder / f"{interval}.safetensors")
        if whole is not None:
            for name, parameter in replica.tensors.items():
                restore_adam(name, parameter, whole, lambda name: torch.from_numpy(read_entry(table[name])))


def _sha256(progressed: Progressed, names: Iterable[str], read: Callable[[str], NDArray[Any]]) -> str:
    digest = hashlib.sha256(msgspec.msgpack.encode(msgspec.structs.replace(progressed, sha256="")))
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(read(name)).tobytes())
    return digest.hexdigest()


def _interval_tensors(interval: int, replica: Replica, whole: torch.optim.Adam | None) -> Iterator[tuple[str, Tensor]]:
    yield from replica.half.kept(interval)
    if whole is not None:
        for name, parameter in replica.tensors.items():
            yield from adam_state(name, parameter, whole)
