# SPDX-License-Identifier: Apache-2.0
"""The main job's data: split by template, uneven between homes, the same in every process."""

from __future__ import annotations

from collections import Counter

import pytest

from examples.voice_intents import data
from tests.hashseeds import said_with_hash_seeds


def test_no_template_is_on_both_sides_and_every_intent_is_on_both() -> None:
    held, spoken = (data._by_intent(held_out_templates=side, seed=0) for side in (True, False))
    assert held.keys() == spoken.keys() == set(data.labels()) and len(held) >= 20
    for intent in held:
        assert not {t.text for t in held[intent]} & {t.text for t in spoken[intent]}
        assert held[intent] and spoken[intent]


def test_homes_never_say_a_held_out_utterance_and_differ_in_names_and_mix() -> None:
    held = {row["text"] for row in data.held_out()}
    homes = [data.home(index) for index in range(4)]
    assert len(held) > 800 and all(len(home) == 600 for home in homes)
    assert not held & {row["text"] for home in homes for row in home}
    shares = [Counter(row["label"] for row in home) for home in homes]
    # An even mix would be 600 / 21 = 29 of each intent.
    assert all(
        max(share.values()) > 2 * 600 / len(data.labels()) and len(share) < len(data.labels()) for share in shares
    )
    assert len({share.most_common(1)[0][0] for share in shares}) > 1
    names = [data._names(0, index) for index in range(4)]
    assert len({home.areas for home in names}) == 4 and len({home.things["light"] for home in names}) == 4


def test_data_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from examples.voice_intents.data import home, held_out; print(home(1), held_out())"
    outputs = said_with_hash_seeds(code)
    assert len(outputs) == 1 and "Hass" in outputs.pop()


def test_a_home_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="home 4 of 4"):
        data.home(4)
