# SPDX-License-Identifier: Apache-2.0
"""Which token is picked: greedy, drawn within limits, and never one that may not come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_client.worker.compiled.sampling import Picker
from fedcore.config.generation import GenerationOptions

# Probabilities 0.5, 0.25, 0.15, 0.1 of tokens 3, 0, 2, 1.
LOGITS = np.log(np.array([0.25, 0.1, 0.15, 0.5], np.float32))


class Only:
    def __init__(self, *tokens: int, words: int = 4) -> None:
        self.mask, self.accepted = np.zeros(words, bool), list[int]()
        self.mask[list(tokens)] = True

    def allowed(self) -> NDArray[np.bool_]:
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
    expected = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum()
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


@pytest.mark.parametrize("limits", [{"top_p": 0.9}, {"top_p": 0.9, "top_k": 2000}, {"top_k": 700}, {}])
def test_of_many_words_those_within_the_limits_are_drawn(limits: dict[str, Any]) -> None:
    # So flat that the likeliest hundreds are not enough.
    logits = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    order = np.argsort(-logits, kind="stable")[: limits.get("top_k")]
    share = np.exp(logits[order].astype(np.float64))
    before = np.concatenate(([0.0], np.cumsum(share)[:-1])) / share.sum()
    allowed = set(order[before < limits.get("top_p", 1.0)].tolist())
    picker = Picker(GenerationOptions(temperature=1.0, **limits))
    found = [picker.pick(logits) for _ in range(3000)]
    assert set(found) <= allowed and len(set(found)) > len(allowed) / 4
    # As often as the model says: the likelier half of the mass has half of the draws.
    half = set(order[before < 0.5 * min(1.0, limits.get("top_p", 1.0))].tolist())
    assert sum(token in half for token in found) / len(found) == pytest.approx(0.5, abs=0.04)


def test_draws_stay_as_they_are() -> None:
    """Golden: what a seed gives is the same in all versions."""
    logits = np.sin(np.arange(1000, dtype=np.float64)).astype(np.float32) * 3
    picked = {}
    for name, limits in {"all": {}, "top_k": {"top_k": 50}, "top_p": {"top_p": 0.8}}.items():
        picker = Picker(GenerationOptions(temperature=0.8, seed=5, **limits))  # type: ignore[arg-type]
        picked[name] = [picker.pick(logits) for _ in range(6)]
    assert picked == {
        "all": [805, 806, 511, 284, 52, 380],
        "top_k": [391, 391, 856, 234, 322, 498],
        "top_p": [888, 888, 27, 385, 77, 881],
    }
