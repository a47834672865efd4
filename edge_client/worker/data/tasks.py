# SPDX-License-Identifier: Apache-2.0
"""Tasks: from examples to batches, from a model to a loss, and the numbers that say how good it is.

A batch is the same whatever the micro-batch: losses are summed over examples (tokens, for causal-lm) and divided by the
whole batch's count, so that gradient accumulation gives the whole batch's gradient up to float rounding."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_client.worker.data.reading import Example
from edge_client.worker.model.loss import IGNORE_INDEX, chunked_cross_entropy
from edge_client.worker.model.padding import Padding
from fedcore.config.sections import TaskSection
from fedcore.errors import DataError

__all__ = ["Encoded", "batches", "encode", "outputs", "pad", "states_and_labels", "summed_loss"]


@dataclass(frozen=True)
class Encoded:
    """One example as token ids, with its target (None: the tokens themselves)."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None
    target: int | float | None

    @property
    def weight(self) -> int:
        """What the example counts in the mean loss: one, or the tokens it predicts."""
        return 1 if self.target is not None else len(self.ids) - 1


def encode(examples: Sequence[Example], task: TaskSection, tokenizer: Any) -> list[Encoded]:
    """Tokenise; classification truncates to `max_length`, causal-lm cuts into pieces of it.

    Raises:
        DataError: Nothing is left to train on.
    """
    out: list[Encoded] = []
    for example in examples:
        if task.kind == "causal-lm":
            ids = tokenizer(example.text)["input_ids"]
            pieces = (tuple(ids[i : i + task.max_length]) for i in range(0, len(ids), task.max_length))
            out += [Encoded(piece, None, None) for piece in pieces if len(piece) > 1]
        else:
            made = tokenizer(example.text, example.text_pair, truncation=True, max_length=task.max_length)
            types = made.get("token_type_ids")
            out.append(Encoded(tuple(made["input_ids"]), tuple(types) if types else None, example.target))
    if not out:
        raise DataError("no example is longer than one token", remedy="check data.text")
    return out


def batches(encoded: Sequence[Encoded], batch_size: int, *words: object) -> Iterator[list[Encoded]]:
    """Endless batches: every pass is a new shuffle without replacement; `words` (run seed, round, node) decide all."""
    digest = hashlib.sha256("/".join(["fedkrso batches 1", *map(str, words)]).encode()).digest()
    chance = random.Random(int.from_bytes(digest, "little"))  # noqa: S311 - an order, not a secret
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue += chance.sample(range(len(encoded)), len(encoded))
        yield [encoded[i] for i in queue[:batch_size]]
        del queue[:batch_size]


def pad(batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> dict[str, Tensor]:
    """Token ids and mask (b, longest) of a micro-batch, padded on the right."""
    longest = max(len(encoded.ids) for encoded in batch)
    ids = torch.full((len(batch), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    types = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, encoded in enumerate(batch):
        length = len(encoded.ids)
        ids[row, :length] = torch.tensor(encoded.ids)
        mask[row, :length] = 1
        if encoded.types is not None:
            types[row, :length] = torch.tensor(encoded.types)
    out = {"input_ids": ids, "attention_mask": mask}
    if batch[0].types is not None:
        out["token_type_ids"] = types
    return {name: tensor.to(torch_device) for name, tensor in out.items()}


def outputs(model: Any, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> Tensor:
    """Logits (b, labels) or scores (b, 1) of a micro-batch."""
    logits: Tensor = model(**_inputs(model, batch, pad_id, torch_device)).logits
    return logits


def _inputs(model: Any, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> dict[str, Tensor]:
    """Of a micro-batch; a model that can leave padding out is told where it is."""
    inputs = pad(batch, pad_id, torch_device)
    padding = getattr(model, "padding", None)
    if isinstance(padding, Padding):
        padding.see(inputs["attention_mask"])
    return inputs


def summed_loss(
    model: Any, batch: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device
) -> Tensor:
    """Loss of a micro-batch, summed over its examples (tokens, for causal-lm); a scalar with a graph."""
    if task.kind == "causal-lm":
        return _summed_token_loss(model, batch, pad_id, torch_device)
    logits = outputs(model, batch, pad_id, torch_device).float()
    targets = [encoded.target for encoded in batch]
    if task.kind == "regression":
        wanted = torch.tensor(targets, dtype=torch.float32, device=torch_device)
        return nn.functional.mse_loss(logits.squeeze(-1), wanted, reduction="sum")
    return nn.functional.cross_entropy(logits, torch.tensor(targets, device=torch_device), reduction="sum")


def states_and_labels(
    model: Any, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of a causal-lm micro-batch: the hidden state (b, t - 1, n) of each token but the last, and the token (b, t - 1)
    that follows it."""
    inputs = _inputs(model, batch, pad_id, torch_device)
    hidden = getattr(model, model.base_model_prefix)(**inputs).last_hidden_state  # (b, t, n)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    return hidden[:, :-1], labels[:, 1:]


def _summed_token_loss(model: Any, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> Tensor:
    hidden, labels = states_and_labels(model, batch, pad_id, torch_device)
    # Logits never exist whole.
    return chunked_cross_entropy(hidden.reshape(-1, hidden.shape[-1]), model.output_weight, labels.reshape(-1), count=1)
