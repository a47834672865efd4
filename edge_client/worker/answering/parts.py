# SPDX-License-Identifier: Apache-2.0
"""A classifier in two parts: on a device its first blocks with a head of their own, at the coordinator the blocks that
follow. What crosses are the first part's hidden states, rounded to 8 bits.

The coordinator's model runs as transformers has it, so positions, masks and norms are the model's own: its first blocks
pass on what they get, and what the first of its own blocks gets is put in the place of what came through them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.answering.finished import finished
from edge_client.worker.architecture.cut import blocks_in, put_out, taken_in, without_weights
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, encode, outputs
from edge_client.worker.model.built import BuiltModel
from fedcore.config.tasks import task_of
from fedcore.errors import DataError, ModelError, WorkerError
from fedcore.weights.checkpoint import Checkpoint, Tensors, feed_entry
from fedcore.worker.parts import Begin, Beginning, Begun, Finish, Finished, HiddenStates, LoadPart, PartLoaded

__all__ = ["Parts", "embedding_of", "front_fingerprint", "numbers_of", "quantised"]

_BATCH = 16
_MOST_MEDIANS = 6
"""Times the median number of a text's vector, beyond which none of them counts."""
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")
_EMBEDDINGS = re.compile(r"embed|(^|\.)w[tp]e\.")


class Parts:
    """Holds one part.

    Args:
        tokenizer_of: Reads a model folder's.
    """

    def __init__(self, tokenizer_of: Any) -> None:
        self._tokenizer_of = tokenizer_of
        self._model: BuiltModel | None = None
        self._captured: Tensor | None = None
        self._given: Tensor | None = None

    def load(self, command: LoadPart) -> PartLoaded:
        """Hold a part.

        Raises:
            ModelError: No classifier of labels, or not so many blocks.
        """
        torch.set_num_threads(command.threads)
        folder = Path(command.model_folder)
        tokenizer = self._tokenizer_of(folder)
        found = finished(folder, folder, tokenizer)
        labels = tuple(found.task.labels)
        if not task_of(found.task).outputs() or task_of(found.task).scale or len(labels) < 2:
            raise ModelError("no classifier with two labels or more", place=str(folder), remedy="export one of a run")
        module = found.model.module.eval()
        blocks = blocks_in(module, str(folder))
        mine = command.blocks or len(blocks)
        if not 0 < mine <= len(blocks) or (command.blocks and mine == len(blocks)):
            raise ModelError(f"{command.blocks} blocks on devices, of a model of {len(blocks)}", place=str(folder))
        if command.blocks:
            for block in blocks[:mine]:
                without_weights(block)
            taken_in(blocks[mine], self._put_in)
        else:
            put_out(blocks[-1], self._capture)
        self._model, self._task, self._tokenizer, self._front = found.model, found.task, tokenizer, not command.blocks
        config: Any = module.config
        self._width = int(config.get_text_config().hidden_size)
        return PartLoaded(
            front=front_fingerprint(Checkpoint(folder), mine),
            labels=labels,
            width=self._width,
            max_length=found.task.max_length,
        )

    def begin(self, command: Begin) -> Begun:
        """Texts through the first blocks.

        Raises:
            WorkerError: Another part is held, or none.
        """
        model = self._held(front=True)
        encoded = encode([Example(text, pair, None) for text, pair in command.texts], self._task, self._tokenizer)
        found: list[Beginning] = []
        for start in range(0, len(encoded), _BATCH):
            batch = encoded[start : start + _BATCH]
            scores = self._scores(model, batch)
            assert self._captured is not None
            for row, states, said in zip(batch, self._captured.float().numpy(), scores, strict=True):
                numbers, scales = quantised(states[: len(row.ids)])
                hidden = HiddenStates(len(row.ids), numbers.tobytes(), scales.astype("<f4").tobytes())
                found.append(Beginning(said, hidden, embedding_of(numbers, scales)))
        return Begun(tuple(found))

    def finish(self, command: Finish) -> Finished:
        """Hidden states through the blocks that follow.

        Raises:
            DataError: They are of no text of this model.
            WorkerError: Another part is held, or none.
        """
        model = self._held(front=False)
        states = [numbers_of(one, self._width) for one in command.texts]
        # Any token that is no padding: what is made of it is not looked at.
        dummy = 1 if model.pad_id == 0 else 0
        types = (0,) if model.takes_types else None
        rows = [Encoded((dummy,) * len(q), types and types * len(q), None) for q, _ in states]
        scores: list[tuple[float, ...]] = []
        for start in range(0, len(rows), _BATCH):
            batch = states[start : start + _BATCH]
            given = torch.zeros(len(batch), max(len(q) for q, _ in batch), self._width)
            for row, (numbers, scales) in enumerate(batch):
                given[row, : len(numbers)] = torch.from_numpy(numbers.astype(np.float32) * scales[:, None])
            self._given = given
            scores += self._scores(model, rows[start : start + _BATCH])
        return Finished(tuple(scores), tuple(embedding_of(numbers, scales) for numbers, scales in states))

    def _held(self, *, front: bool) -> BuiltModel:
        if self._model is None or self._front != front:
            raise WorkerError("no such part of a model is loaded")
        return self._model

    def _scores(self, model: BuiltModel, batch: Sequence[Encoded]) -> list[tuple[float, ...]]:
        with torch.inference_mode():
            said = outputs(model, batch, model.pad_id, torch.device("cpu")).float().softmax(-1)
        return [tuple(row) for row in said.tolist()]

    def _capture(self, said: Tensor) -> Tensor:
        self._captured = said
        return said

    def _put_in(self, hidden: Tensor) -> Tensor:
        assert self._given is not None
        return self._given.to(hidden.dtype)


def quantised(states: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Hidden states (t, n) as 8 bits a number, half to even, and a scale (t,): a token's largest number is 127.

    Example:
        >>> numbers, scales = quantised(np.array([[127.0, -63.5], [0.0, 0.0]], np.float32))
        >>> numbers.tolist(), scales.tolist()
        ([[127, -64], [0, 0]], [1.0, 1.0])
    """
    largest = np.abs(states).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(states / scales[:, None]).astype(np.int8), scales


def numbers_of(hidden: HiddenStates, width: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """What came over the wire as arrays.

    Raises:
        DataError: Not `tokens` times `width` numbers, or scales that are none.
    """
    tokens = hidden.tokens
    if tokens < 1 or len(hidden.numbers) != tokens * width or len(hidden.scales) != 4 * tokens:
        raise DataError(f"{len(hidden.numbers)} numbers of {tokens} tokens, and {width} a token are expected")
    scales = np.frombuffer(hidden.scales, "<f4")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise DataError("a token's scale is no positive number")
    return np.frombuffer(hidden.numbers, np.int8).reshape(tokens, width), scales


def embedding_of(numbers: NDArray[np.int8], scales: NDArray[np.float32]) -> bytes:
    """One vector of a text: the mean of its tokens' hidden states, in 8 bits; its length says nothing.

    A decoder's states have a few numbers that are hundreds of times the others and the same in every text; with them
    all texts are alike. So no number counts for more than six times the median one. Of SmolLM2's first ten blocks two
    texts have a cosine of 0.50 then, not 0.95, and a text without its last word still one of 0.98.

    Example:
        >>> embedding_of(np.array([[127, 1, -2, 1]], np.int8), np.ones(1, np.float32))
        b'\\x7f\\x0e\\xe4\\x0e'
    """
    mean = (numbers.astype(np.float64) * scales.astype(np.float64)[:, None]).mean(axis=0)
    limit = _MOST_MEDIANS * np.median(np.abs(mean))
    mean = np.clip(mean, -limit, limit) if limit > 0 else mean
    largest = np.abs(mean).max()
    rounded = np.rint(mean / largest * 127) if largest > 0 else np.zeros_like(mean)
    return bytes(rounded.astype(np.int8).tobytes())


def front_fingerprint(checkpoint: Tensors, blocks: int) -> str:
    """SHA-256 of what makes hidden states: embeddings and the first blocks, whatever comes after them."""
    digest = hashlib.sha256(b"fedkrso front 2")
    for name in sorted(checkpoint.tensors):
        block = _BLOCK.search(name)
        if int(block[1]) < blocks if block else _EMBEDDINGS.search(name):
            entry = checkpoint.tensors[name]
            digest.update(f"\0{name}\0{entry.dtype}\0{entry.shape}\0".encode())
            feed_entry(digest.update, entry)
    return digest.hexdigest()
