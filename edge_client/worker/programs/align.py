# SPDX-License-Identifier: Apache-2.0
"""An emulator's middle, brought nearer to the full model's: its blocks train so that what goes into the full middle
comes out as the full middle has it, on text of the owner's (offsite tuning, Xiao et al., arXiv 2302.04870, section 3.3:
layerwise distillation).

Only what comes out at the end of the middle is compared, as the mean squared error of a number in units of the mean
square. The ends stay as they are, bit by bit, and so does what is plugged in: of the middle nothing ever comes back.

Legend: b texts, t tokens, n features."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.cut import blocks_in, put_out
from edge_client.worker.data.batches import Encoded, batches, pad
from edge_client.worker.data.reading import load_texts
from edge_client.worker.data.tasks import encode
from edge_client.worker.train.round import learning_rate_factor
from fedcore.config.sections import TaskSection
from fedcore.errors import DataError, ModelError
from fedcore.weights.checkpoint import Checkpoint, from_float32, write_safetensors
from fedcore.weights.offsite import OffsiteMap, read_map
from fedcore.worker.exchange import AlignEmulator, EmulatorAligned

__all__ = ["aligned"]

_BATCH, _MEASURED = 16, 4
_LARGEST_GRADIENT = 1.0


def aligned(command: AlignEmulator) -> EmulatorAligned:
    """Align an emulator and write its folder anew.

    Raises:
        ModelError: It is no emulator, has no middle, or its model's blocks are in no list.
        DataError: There is too little text.
    """
    from transformers import AutoModel

    started = time.monotonic()
    torch.set_num_threads(command.threads)
    folder, task = Path(command.folder), TaskSection(kind="causal-lm", max_length=command.max_length)
    found = read_map(folder)
    if found is None or found.first + found.last == len(found.kept):
        raise ModelError("it has no middle that could be aligned", place=str(folder), remedy="--middle 1, or more")
    tokenizer = read_tokenizer(Path(command.full))
    texts = encode(load_texts(command.data, command.rows, task), task, tokenizer)
    held, texts = texts[: _MEASURED * _BATCH], texts[_MEASURED * _BATCH :]
    if len(texts) < _BATCH:
        least = (_MEASURED + 1) * _BATCH
        raise DataError(f"fewer than {least} texts to align with", place=command.data.source, remedy="use more")
    full: Any = AutoModel.from_pretrained(command.full, dtype=torch.float32).eval()
    middle = _Middle(full, found)
    asked = [held[start : start + _BATCH] for start in range(0, len(held), _BATCH)]
    before = sum(middle.errors(batch) for batch in asked) / len(asked)
    adam = torch.optim.Adam(middle.own.parameters(), lr=command.learning_rate)
    stream = batches(texts, _BATCH, "align", command.seed)
    for step in range(command.steps):
        adam.param_groups[0]["lr"] = command.learning_rate * learning_rate_factor(step, command.steps)
        adam.zero_grad(set_to_none=True)
        middle.loss(next(stream)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(middle.own.parameters(), _LARGEST_GRADIENT)
        adam.step()
    after = sum(middle.errors(batch) for batch in asked) / len(asked)
    _write(folder, found, middle.own)
    return EmulatorAligned(before, after, len(texts), time.monotonic() - started)


class _Middle:
    """What the emulator has of the middle, beside the full model.

    Args:
        full: The full model's backbone.
        found: Which of its blocks the emulator has.
    """

    def __init__(self, full: nn.Module, found: OffsiteMap) -> None:
        blocks = blocks_in(full, "MODEL")
        kept = found.kept[found.first : len(found.kept) - found.last]
        self.own = nn.ModuleList(copy.deepcopy(blocks[number]) for number in kept)
        full.requires_grad_(False)
        self._full, self._first, self._last = full, blocks[found.first], blocks[len(blocks) - found.last - 1]

    def errors(self, batch: list[Encoded]) -> float:
        """The error of a batch, without gradients."""
        with torch.no_grad():
            return float(self.loss(batch))

    def loss(self, batch: list[Encoded]) -> Tensor:
        """Mean squared error of a number that comes out, of real tokens, in units of the mean square."""
        inputs = pad(batch, 0, torch.device("cpu"))
        with self._seen() as (given, came), torch.no_grad():
            self._full(**inputs)
        (arguments, named), wanted = given[0], came[0]
        hidden, rest = (arguments[0], arguments[1:]) if arguments else (named["hidden_states"], ())
        named = {key: value for key, value in named.items() if key != "hidden_states"}
        for block in self.own:
            said = block(hidden, *rest, **named)
            hidden = said[0] if isinstance(said, tuple) else said
        real = inputs["attention_mask"].bool()
        found: Tensor = (hidden[real] - wanted[real]).square().mean() / wanted[real].square().mean()
        return found

    @contextmanager
    def _seen(self) -> Iterator[tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], list[Tensor]]]:
        """Inside, what the full middle's first block gets, and what its last one gives out."""
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        came: list[Tensor] = []

        def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            # A cache would be filled by whoever comes next.
            given.append((arguments, {key: None if "past" in key else value for key, value in named.items()}))

        def after(hidden: Tensor) -> Tensor:
            came.append(hidden)
            return hidden

        hooks = [self._first.register_forward_pre_hook(before, with_kwargs=True), put_out(self._last, after)]
        try:
            yield given, came
        finally:
            for hook in hooks:
                hook.remove()


def _write(folder: Path, found: OffsiteMap, own: nn.ModuleList) -> None:
    """The emulator's weights with another middle, in the types that they had."""
    checkpoint = Checkpoint(folder)
    trained = {
        f"{found.prefix}{found.first + number}.{name}": parameter
        for number, block in enumerate(own)
        for name, parameter in block.named_parameters()
    }
    if missing := [name for name in checkpoint.tensors if not found.trains(name) and name not in trained]:
        raise ModelError(f"{missing[0]} is no parameter of its block", place=str(folder))

    def read(name: str) -> NDArray[Any]:
        if name not in trained:
            return checkpoint.read(name)
        values: NDArray[np.float32] = trained[name].detach().numpy()
        return from_float32(values, checkpoint.tensors[name].dtype)

    table = [(name, entry.dtype, entry.shape) for name, entry in checkpoint.tensors.items()]
    beside = folder / "model.safetensors.new"
    write_safetensors(beside, table, read)
    beside.replace(folder / "model.safetensors")
