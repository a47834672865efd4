# SPDX-License-Identifier: Apache-2.0
"""Examples as token ids, their batches, and what a model makes of a micro-batch.

A batch is the same whatever the micro-batch."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.varlen import end_to_end
from fedcore.config.tasks import Target
from fedcore.errors import DataError

__all__ = ["Encoded", "batches", "in_order", "inputs_of", "outputs", "pad", "portions", "states_and_labels"]


@dataclass(frozen=True)
class Encoded:
    """One example as token ids, with its target (None: the tokens themselves)."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None
    target: Target
    counts: int | None = None
    """What it counts in the mean loss, of a task of one's own that counts otherwise."""
    learned: tuple[tuple[int, int], ...] | None = None
    """Where the tokens themselves are learned: spans of `ids`, none of which has the first token. None: all others."""
    segments: tuple[int, ...] = ()
    """Lengths of the examples that were packed into this one; none for one alone."""
    cut: bool = False
    """Whether the example was longer, and lost a part."""

    @property
    def examples(self) -> int:
        """How many there are in it."""
        return len(self.segments) or 1

    @property
    def weight(self) -> int:
        """What the example counts in the mean loss: one, or the tokens it learns."""
        if self.counts is not None:
            return self.counts
        return 1 if self.target is not None else sum(stop - start for start, stop in self.spans)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Which tokens are learned, where tokens are."""
        return ((1, len(self.ids)),) if self.learned is None else self.learned


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


def in_order(encoded: Sequence[Encoded], batch_size: int) -> Iterator[list[Encoded]]:
    """Batches of one pass over all examples as they lie; the last one may be smaller."""
    return (list(encoded[start : start + batch_size]) for start in range(0, len(encoded), batch_size))


def portions(encoded: Sequence[Encoded], most_tokens: int, *words: object) -> list[list[Encoded]]:
    """All examples in portions of so many tokens at most, in an order that `words` (run seed, node) decide.

    Args:
        encoded: At least one.
        most_tokens: Of a portion; an example that is longer alone is in none.
        words: Decide the order.

    Example:
        >>> one, other = Encoded((1, 2), None, 0), Encoded((3, 4, 5), None, 1)
        >>> [[len(some) for some in portions(texts, 4, 0, "kitchen")] for texts in ([one, one], [other, other])]
        [[2], [1, 1]]

    Raises:
        DataError: All of them are.
    """
    digest = hashlib.sha256("/".join(["fedkrso portions 1", *map(str, words)]).encode()).digest()
    chance = random.Random(int.from_bytes(digest, "little"))  # noqa: S311 - an order, not a secret
    found, room = list[list[Encoded]](), 0
    for place in chance.sample(range(len(encoded)), len(encoded)):
        one = encoded[place]
        if (size := len(one.ids)) > most_tokens:
            continue
        if size > room:
            found.append([])
            room = most_tokens
        found[-1].append(one)
        room -= size
    if not found:
        raise DataError(f"no text has {most_tokens} tokens or fewer", place="method.tokens", remedy="raise it")
    return found


def pad(batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> dict[str, Tensor]:
    """Token ids and mask (b, longest) of a micro-batch, padded on the right; positions too, where examples are packed:
    they begin anew in each, and padding stands at 0."""
    longest = max(len(encoded.ids) for encoded in batch)

    def rows(of: Callable[[Encoded], Sequence[int]], filler: int = 0) -> Tensor:
        filled = [[*(row := of(encoded)), *[filler] * (longest - len(row))] for encoded in batch]
        return torch.tensor(filled, dtype=torch.long, device=torch_device)

    out = {"input_ids": rows(lambda encoded: encoded.ids, pad_id)}
    out["attention_mask"] = rows(lambda encoded: [1] * len(encoded.ids))
    if batch[0].types is not None:
        out["token_type_ids"] = rows(lambda encoded: encoded.types or ())
    if any(encoded.segments for encoded in batch):
        out["position_ids"] = rows(
            lambda encoded: [place for size in encoded.segments or (len(encoded.ids),) for place in range(size)]
        )
    return out


def outputs(model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> Tensor:
    """Logits (b, labels) or scores (b, 1) of a micro-batch."""
    types = None if batch[0].types is None else [encoded.types or () for encoded in batch]
    inputs = end_to_end(model, [encoded.ids for encoded in batch], torch_device, types)
    logits: Tensor = model.module(**(inputs or inputs_of(model, batch, pad_id, torch_device))).logits
    return logits


def inputs_of(
    model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
) -> dict[str, Tensor]:
    """What a model's forward takes of a micro-batch; its layers are told where padding is."""
    inputs = pad(batch, pad_id, torch_device)
    model.padding.see(inputs["attention_mask"])
    if "position_ids" in inputs:
        # Transformers keeps examples apart by positions only where there is no mask.
        del inputs["attention_mask"]
    return inputs


def states_and_labels(
    model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a language model learns of a micro-batch: of each learned token, example by example, the hidden state of the
    token before it, (learned, n), and the token, int64 (learned,).

    Logits are needed nowhere else: the output head, which costs most, sees these states alone."""
    packed = any(encoded.segments for encoded in batch)
    inputs = None if packed else end_to_end(model, [encoded.ids for encoded in batch], torch_device)
    given = inputs_of(model, batch, pad_id, torch_device) if inputs is None else inputs
    hidden = model.backbone(**given).last_hidden_state  # (b, t, n), or all in one row
    width = hidden.shape[1]
    sizes = [len(encoded.ids) for encoded in batch[:-1]] if inputs is not None else [width] * (len(batch) - 1)
    flat, begins = hidden.flatten(0, 1), [0, *itertools.accumulate(sizes)]
    spans = [(row, span) for row, encoded in enumerate(batch) for span in encoded.spans]
    places = [begins[row] + token - 1 for row, span in spans for token in range(*span)]
    labels = [token for row, (start, stop) in spans for token in batch[row].ids[start:stop]]
    states = flat.index_select(0, torch.tensor(places, device=torch_device))
    return states, torch.tensor(labels, device=torch_device)
