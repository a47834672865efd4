# SPDX-License-Identifier: Apache-2.0
"""Which token is picked: greedy, drawn within limits, and never one that may not come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from edge_client.worker.generate.sampling import Picker
from fedcore.config.generation import GenerationOptions

# Probabilities 0.5, 0.25, 0.15, 0.1 of tokens 3, 0, 2, 1.
LOGITS = torch.tensor([0.25, 0.1, 0.15, 0.5]).log()


class Only:
    def __init__(self, *tokens: int, words: int = 4) -> None:
        self.mask, self.accepted = torch.zeros(words, dtype=torch.bool), list[int]()
        self.mask[list(tokens)] = True

    def allowed(self) -> Tensor:
        return self.mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def drawn(count: int = 4000, **options: Any) -> dict[int, float]:
    picker = Picker(
        GenerationOptions(temperature=1.0, **options) if "temperature" not in options else GenerationOptions(**options)
    )
    found = Counter(picker.pick(LOGITS) for _ in range(count))
    return {token: number / count for token, number in found.items()}


def test_the_likeliest_token_is_the_default() -> None:
    assert [Picker(GenerationOptions()).pick(LOGITS) for _ in range(3)] == [3, 3, 3]
    assert drawn(20, top_k=1) == {3: 1.0}


def test_draws_have_the_model_s_probabilities() -> None:
    assert drawn() == pytest.approx({3: 0.5, 0: 0.25, 2: 0.15, 1: 0.1}, abs=0.03)


def test_temperature_sharpens() -> None:
    expected = LOGITS.div(0.5).softmax(-1)
    assert drawn(temperature=0.5) == pytest.approx(dict(enumerate(expected.tolist())), abs=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert drawn(top_k=2) == pytest.approx({3: 2 / 3, 0: 1 / 3}, abs=0.03)
    assert drawn(top_p=0.7) == pytest.approx({3: 2 / 3, 0: 1 / 3}, abs=0.03)
    assert set(drawn(top_p=0.76)) == {3, 0, 2}
    assert drawn(50, top_p=0.01) == {3: 1.0}


def test_a_seed_gives_the_same_draws() -> None:
    options = GenerationOptions(temperature=1.0, seed=7)
    one, other = ([picker.pick(LOGITS) for _ in range(50)] for picker in (Picker(options), Picker(options)))
    assert one == other
    third = Picker(GenerationOptions(temperature=1.0, seed=8))
    assert one != [third.pick(LOGITS) for _ in range(50)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_decides_and_hears(temperature: float) -> None:
    constraint = Only(1, 2)
    picker = Picker(GenerationOptions(temperature=temperature), constraint)
    picked = [picker.pick(LOGITS) for _ in range(50)]
    assert set(picked) <= {1, 2} and picked == constraint.accepted
    assert temperature or set(picked) == {2}


def test_words_beyond_a_shorter_mask_may_not_come() -> None:
    assert Picker(GenerationOptions(), Only(0, 1, words=2)).pick(LOGITS) == 0
