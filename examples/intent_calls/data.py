# SPDX-License-Identifier: Apache-2.0
"""What homes said to their assistants, and what it meant: rows with `prompt` and `completion`.

Two sets are held out. `new_names`: sentences that some home speaks, in a household whose names no home has.
`new_sentences`: from templates that no home speaks, with the homes' names. Each home has its own names and its own mix
of intents (Dirichlet 1)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from examples.intent_calls.calls import Command, command, intents, usable
from examples.intent_calls.names import Household, household
from examples.voice_intents.grammar import Template

__all__ = ["calibration", "held_out", "home", "new_names", "new_sentences", "spoken_templates"]

_HELD_OUT_SHARE = 0.15
_CONCENTRATION = 1.0
Row = dict[str, str]


def home(index: int, homes: int = 4, seed: int = 0, examples: int = 1500) -> list[Row]:
    """What one home said.

    Args:
        index: Which home, 0 to homes - 1.
        homes: How many there are.
        seed: Of the run's data.
        examples: Rows.
    """
    if not 0 <= index < homes:
        raise ValueError(f"home {index} of {homes} does not exist")
    chance = _random("home", seed, index)
    # A Dirichlet draw is normalised gamma draws; no intent is quite unknown to any home.
    mix = [chance.gammavariate(_CONCENTRATION, 1.0) + 1e-2 for _ in intents()]
    names, spoken = _household(seed, index), spoken_templates(seed)
    held = {row["prompt"]: row["completion"] for rows in (new_names(seed), new_sentences(seed, homes)) for row in rows}
    rows: list[Row] = []
    while len(rows) < examples:
        intent = chance.choices(intents(), mix)[0]
        made = command(chance.choice(spoken[intent]), names, chance)
        if made is not None and made.text not in held:
            rows.append(_row(made))
    return rows


def new_names(seed: int = 0, examples: int = 300) -> list[Row]:
    """Sentences that homes speak, in a household whose names none of them has."""
    return _held_out(spoken_templates(seed), (_household(seed, None),), examples, _random("new names", seed))


def new_sentences(seed: int = 0, homes: int = 4, examples: int = 300) -> list[Row]:
    """Sentences from templates that no home speaks, with the names of all homes."""
    households = tuple(_household(seed, index) for index in range(homes))
    return _held_out(spoken_templates(seed, held_out=True), households, examples, _random("new sentences", seed, homes))


def calibration(seed: int = 0, examples: int = 512) -> list[Row]:
    """Sentences that a coordinator may write itself: spoken templates, in a household that nobody lives in."""
    everybody = household(_random("calibration", seed), _random("kept", seed), new=False)
    return _held_out(spoken_templates(seed), (everybody,), examples, _random("calibration rows", seed))


def held_out(seed: int = 0, homes: int = 4, examples: int = 128) -> list[Row]:
    """Of both held-out sets half of the rows each, for a look after every round."""
    return new_names(seed, examples // 2) + new_sentences(seed, homes, examples - examples // 2)


@lru_cache(maxsize=4)
def spoken_templates(seed: int = 0, *, held_out: bool = False) -> Mapping[str, tuple[Template, ...]]:
    """Templates that homes speak, by intent; with `held_out` those that none speaks. What has but one template is
    spoken: a call that nobody makes cannot be learned."""
    chosen: dict[str, tuple[Template, ...]] = {}
    for intent, own in usable().items():
        spoken = sorted(own, key=lambda template: _digest("split", seed, intent, template.text))
        aside: list[Template] = []
        for template in tuple(spoken):
            if len(aside) < max(1, round(_HELD_OUT_SHARE * len(own))) and _others(template, spoken):
                aside.append(template)
                spoken.remove(template)
        chosen[intent] = tuple(aside if held_out else spoken)
    return chosen


def _others(template: Template, among: Sequence[Template]) -> bool:
    """Whether other templates have the same slots."""
    return sum(_slots(other) == _slots(template) for other in among) > 1


def _slots(template: Template) -> str:
    return str(template.block.metadata.get("slot_combination"))


def _held_out(
    by_intent: Mapping[str, Sequence[Template]],
    households: Sequence[Household],
    examples: int,
    chance: random.Random,
) -> list[Row]:
    """Rows with intents in turn; texts differ, so that an intent of few sentences has fewer."""
    rows: dict[str, Command] = {}
    able = [intent for intent, own in by_intent.items() if own]
    for turn in range(40 * examples):
        intent = able[turn % len(able)]
        made = command(chance.choice(by_intent[intent]), chance.choice(households), chance)
        if made is not None:
            rows.setdefault(made.text, made)
        if len(rows) == examples:
            break
    return [_row(made) for made in rows.values()]


def _row(made: Command) -> Row:
    return {"prompt": made.text, "completion": made.call}


def _household(seed: int, index: int | None) -> Household:
    return household(_random("names", seed, index), _random("kept", seed), new=index is None)


def _random(*words: object) -> random.Random:
    return random.Random(int.from_bytes(_digest(*words), "little"))  # noqa: S311 - data, not secrets


def _digest(*words: object) -> bytes:
    return hashlib.sha256("/".join(["intent calls 1", *map(str, words)]).encode()).digest()
