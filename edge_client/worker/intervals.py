# SPDX-License-Identifier: Apache-2.0
"""Finished intervals on disk, so that a worker that is killed in the middle of a round trains none of them again.

One file an interval: the accumulator of its subspace as it stands afterwards, the tensors trained whole with their Adam, and the loss so
far. Numbers are float32 as they are in memory: a round that was interrupted ends with the same update, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.replica import Replica
from fedcore.checkpoint import TensorEntry, read_entry, read_table, write_safetensors
from fedcore.errors import ModelError
from fedcore.plan import Plan

__all__ = ["FinishedIntervals", "Progressed", "round_key"]


class Progressed(msgspec.Struct, frozen=True, kw_only=True):
    """What an interval's file says beside its tensors."""

    key: str
    interval: int
    subspace: int
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

    def save(self, progressed: Progressed, replica: Replica, whole: torch.optim.Adam | None) -> None:
        """Write an interval; it is on disk when this returns."""
        tensors = {name: tensor.detach().cpu().numpy() for name, tensor in _interval_tensors(progressed, replica, whole)}
        progressed = msgspec.structs.replace(progressed, sha256=_sha256(progressed, tensors, tensors.__getitem__))
        path = self._folder / f"{progressed.interval}.safetensors"
        part = path.with_suffix(".part")
        header = np.frombuffer(msgspec.msgpack.encode(progressed), np.uint8)
        entries = [("progress", "U8", header.shape), *((name, "F32", tensor.shape) for name, tensor in tensors.items())]
        write_safetensors(part, entries, lambda name: header if name == "progress" else tensors[name])
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def restore(self, replica: Replica, whole: torch.optim.Adam | None) -> list[Progressed]:
        """Put back what finished intervals left, in order; the first gap or foreign file ends it.

        Returns:
            What was put back, the oldest first.
        """
        found: list[Progressed] = []
        while (loaded := self._load(len(found), set(_names(replica, whole)))) is not None:
            progressed, table = loaded
            for layer in replica.layers.values():
                layer.restore_accumulator(progressed.subspace, torch.from_numpy(read_entry(table[f"{layer.name}.accumulator"])))
            found.append(progressed)
        for path in self._folder.iterdir():
            if path.name not in {f"{p.interval}.safetensors" for p in found}:
                path.unlink()
        if found:
            self._restore_tensors(len(found) - 1, replica, whole)
        return found

    def clear(self) -> None:
        """The round's update is written: nothing is needed any more."""
        for path in self._folder.iterdir():
            path.unlink()

    def _load(self, interval: int, names: set[str]) -> tuple[Progressed, dict[str, TensorEntry]] | None:
        path = self._folder / f"{interval}.safetensors"
        if not path.exists():
            return None
        try:
            table = read_table(path)
            progressed = msgspec.msgpack.decode(read_entry(table["progress"]).tobytes(), type=Progressed)
        except (ModelError, msgspec.DecodeError, UnicodeDecodeError, KeyError):
            # Torn by a power cut: that interval is trained again.
            return None
        ours = progressed.key == self._key and progressed.interval == interval and names <= table.keys()
        whole = ours and progressed.sha256 == _sha256(progressed, table.keys() - {"progress"}, lambda name: read_entry(table[name]))
        return (progressed, table) if whole else None

    def _restore_tensors(self, interval: int, replica: Replica, whole: torch.optim.Adam | None) -> None:
        table = read_table(self._folder / f"{interval}.safetensors")
        with torch.no_grad():
            for name, parameter in replica.tensors.items():
                parameter.copy_(torch.from_numpy(read_entry(table[f"{name}.value"])))
                if whole is not None:
                    whole.state[parameter] = {
                        "step": torch.from_numpy(read_entry(table[f"{name}.step"])),
                        "exp_avg": torch.from_numpy(read_entry(table[f"{name}.exp_avg"])).to(parameter.device),
                        "exp_avg_sq": torch.from_numpy(read_entry(table[f"{name}.exp_avg_sq"])).to(parameter.device),
                    }


def _sha256(progressed: Progressed, names: Iterable[str], read: Callable[[str], NDArray[Any]]) -> str:
    digest = hashlib.sha256(msgspec.msgpack.encode(msgspec.structs.replace(progressed, sha256="")))
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(read(name)).tobytes())
    return digest.hexdigest()


def _names(replica: Replica, whole: torch.optim.Adam | None) -> Iterable[str]:
    """What an interval's file must have."""
    parts = ("value",) if whole is None else ("value", "step", "exp_avg", "exp_avg_sq")
    yield from (f"{layer.name}.accumulator" for layer in replica.layers.values())
    yield from (f"{name}.{part}" for name in replica.tensors for part in parts)


def _interval_tensors(progressed: Progressed, replica: Replica, whole: torch.optim.Adam | None) -> Iterable[tuple[str, Tensor]]:
    for layer in replica.layers.values():
        yield f"{layer.name}.accumulator", layer.accumulators()[progressed.subspace]
    for name, parameter in replica.tensors.items():
        yield f"{name}.value", parameter
        if whole is not None:
            for part, value in whole.state[parameter].items():
                yield f"{name}.{part}", value
