# SPDX-License-Identifier: Apache-2.0
"""Greedy answers to many prompts side by side: a weight that is read once serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_client.worker.generate.engine import Engine

__all__ = ["Batches", "greedy_answers"]

_Ended = Callable[[int, int], bool]
"""(prompt, token): whether the answer ends with this token, which is then not part of it."""


@dataclass(frozen=True)
class Batches:
    """How many prompts are answered side by side, and how. It changes float rounding alone.

    Attributes:
        rows: Prompts side by side at most.
        pass_tokens: Of all of their prompts together that go through the model at a time; at least one of each.
        wanted: Called before each pass; it raises where nobody waits for the answers any more.
    """

    rows: int = 16
    pass_tokens: int = 2048
    wanted: Callable[[], object] = lambda: None


def greedy_answers(
    engine: Engine, prompts: Sequence[Sequence[int]], ended: _Ended, most: Sequence[int], batches: Batches
) -> list[list[int]]:
    """The likeliest tokens after each prompt.

    Args:
        engine: At work.
        prompts: None of them empty.
        ended: Asked once for each token of each answer, in its order.
        most: Tokens of each answer, at least one.
        batches: How many at a time.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for places in _groups([len(prompt) for prompt in prompts], batches.rows, mixed=engine.pads):
        _answer_group(engine, prompts, places, ended, most, batches, answers)
    return answers


def _groups(lengths: Sequence[int], rows: int, *, mixed: bool) -> Iterator[list[int]]:
    """Prompts of like length together, or of the same length where there can be no padding."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if group and (len(group) == rows or not (mixed or lengths[place] == lengths[group[0]])):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _answer_group(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    places: list[int],
    ended: _Ended,
    most: Sequence[int],
    batches: Batches,
    answers: list[list[int]],
) -> None:
    """Adds to `answers` what follows the prompts at these places."""
    longest = max(len(prompts[place]) for place in places)
    cache = engine.cache_for(longest + max(most[place] for place in places))
    ids = torch.zeros(len(places), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, place in enumerate(places):
        ids[row, longest - len(prompts[place]) :] = torch.tensor(prompts[place])
        mask[row, longest - len(prompts[place]) :] = 1

    def passed(ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (b, v) after some more tokens; the mask is of all tokens so far."""
        batches.wanted()
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        to = engine.device
        # Where nothing is padding there is nothing to mask: the pass then takes torch's faster attention.
        masked = None if mask.all() else mask.to(to)
        logits = engine.forward(
            input_ids=ids.to(to), attention_mask=masked, position_ids=positions.to(to), past_key_values=cache
        )
        engine.give_back()
        return logits

    width = max(1, batches.pass_tokens // len(places))
    for start in range(0, longest, width):
        logits = passed(ids[:, start : start + width], mask[:, : start + width])
    left = list(range(len(places)))
    while True:
        tokens = logits.argmax(-1).tolist()
        going = []
        for row, index in enumerate(left):
            place = places[index]
            if not ended(place, tokens[row]):
                answers[place].append(tokens[row])
                if len(answers[place]) < most[place]:
                    going.append(row)
        if not going:
            return
        if len(going) < len(left):
            chosen = torch.tensor(going)
            left, mask = [left[row] for row in going], mask[chosen]
            tokens = [tokens[row] for row in going]
            cache.batch_select_indices(chosen.to(engine.device))
        mask = torch.cat([mask, mask.new_ones(len(left), 1)], dim=1)
        logits = passed(torch.tensor(tokens)[:, None], mask)
