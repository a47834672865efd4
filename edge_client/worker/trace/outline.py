# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is only shapes: what `config.json` says a model will be, before anything else is downloaded."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.model.loading import empty_model
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.weights.checkpoint import NUMPY_TYPES, Checkpoint, TensorEntry, from_float32, write_safetensors

__all__ = ["Outline", "untouched", "write_random_checkpoint"]

_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def untouched(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Zeros that take no memory until they are written: pages of their own from the system, since an allocator may
    clear used ones."""
    kind = np.dtype(dtype)
    pages = mmap.mmap(-1, max(1, math.prod(shape) * kind.itemsize))
    return np.frombuffer(pages, kind, math.prod(shape)).reshape(shape)


class Outline:
    """Stands where a `Checkpoint` does, with the names and shapes of the weights that lie there, or else that the
    architecture gives.

    Args:
        folder: With a `config.json`.
        task: Decides the head, which a checkpoint does not have.
    """

    def __init__(self, folder: Path, task: TaskSection) -> None:
        self.folder = folder
        if any(folder.glob("*.safetensors")):
            self.tensors = Checkpoint(folder).tensors
            return
        model = empty_model(folder, task)
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dtype = _STORED.get(str(said.get("dtype") or said.get("torch_dtype")), "F32")
        prefix = f"{model.base_model_prefix}."
        self.tensors = {
            name: TensorEntry(folder, 0, dtype, tuple(parameter.shape))
            for name, parameter in model.named_parameters()
            if name.startswith(prefix) or task_of(task).outputs() is None
        }

    def read(self, name: str, *, mapped: bool = False) -> NDArray[Any]:
        """Zeros of the right shape and dtype, which take no memory until they are written."""
        entry = self.tensors[name]
        return untouched(entry.shape, NUMPY_TYPES[entry.dtype])


def write_random_checkpoint(outline: Outline, path: Path, seed: int) -> None:
    """Weights of the right shapes with small random numbers, written tensor by tensor: for measurements where no
    checkpoint is at hand."""
    generator = np.random.default_rng(seed)

    def numbers(name: str) -> NDArray[Any]:
        entry = outline.tensors[name]
        if len(entry.shape) == 1:
            return from_float32(np.ones(entry.shape, np.float32), entry.dtype)
        return from_float32(generator.standard_normal(entry.shape, np.float32) * np.float32(0.02), entry.dtype)

    write_safetensors(path, [(name, entry.dtype, entry.shape) for name, entry in outline.tensors.items()], numbers)
