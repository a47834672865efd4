# SPDX-License-Identifier: Apache-2.0
"""Examples as token ids, their batches, and what a model makes of a micro-batch.

A batch is the same whatever the micro-batch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loss import IGNORE_INDEX
from fedcore.config.tasks import Target

__all__ = ["Encoded", "batches", "outputs", "pad", "states_and_labels"]


@dataclass(frozen=True)
class Encoded:
    """One example as token ids, with its target (None: the tokens themselves)."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None
    target: Target
    counts: int | None = None
    """What it counts in the mean loss, of a task whose loss is over some of its tokens only."""

    @property
    def weight(self) -> int:
        """What the example counts in the mean loss: one, or the tokens it predicts."""
        if self.counts is not None:
            return self.counts
        return 1 if self.target is not None else len(self.ids) - 1


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


def outputs(model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> Tensor:
    """Logits (b, labels) or scores (b, 1) of a micro-batch."""
    logits: Tensor = model.module(**_inputs(model, batch, pad_id, torch_device)).logits
    return logits


def _inputs(model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> dict[str, Tensor]:
    """Of a micro-batch; the model is told where padding is."""
    inputs = pad(batch, pad_id, torch_device)
    model.padding.see(inputs["attention_mask"])
    return inputs


def states_and_labels(
    model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of a causal-lm micro-batch: the hidden state (b, t - 1, n) of each token but the last, and the token (b, t - 1)
    that follows it."""
    inputs = _inputs(model, batch, pad_id, torch_device)
    hidden = model.backbone(**inputs).last_hidden_state  # (b, t, n)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    return hidden[:, :-1], labels[:, 1:]
