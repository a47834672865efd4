# SPDX-License-Identifier: Apache-2.0
"""Utterances of homes, from Home Assistant's own sentence templates: each is one random walk through a template of
`examples.voice_intents.grammar`, with the home's own names for its lists.

The split is by template: held-out templates are spoken by no home. Each home has its own names and its own mix of
intents (Dirichlet 0.5), so that the data is as uneven as that of real homes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import hassil.sample
from hassil.errors import MissingListError
from hassil.expression import Expression, ListReference
from hassil.intents import RangeSlotList, TextSlotList, WildcardSlotList

from examples.voice_intents.grammar import (
    Template,
    known_list,
    narrowed,
    references,
    sentence,
    templates,
    walk,
)
from examples.voice_intents.names import AREAS, FLOORS, FREE_TEXT, MODIFIERS, THINGS

__all__ = ["held_out", "home", "labels"]

_HELD_OUT_SHARE = 0.15
_LEAST_TEMPLATES = 6
_CONCENTRATION = 0.5


@dataclass(frozen=True)
class _Home:
    """One home's names: areas, floors, and things by domain."""

    areas: tuple[str, ...]
    floors: tuple[str, ...]
    things: dict[str, tuple[str, ...]]


def labels() -> tuple[str, ...]:
    """The intents, in order: those with enough templates to be split."""
    return tuple(sorted({template.intent for template in _templates()}))


def home(index: int, homes: int = 4, seed: int = 0, examples: int = 600) -> list[dict[str, str]]:
    """What one home said: rows with `text` and `label`.

    Args:
        index: Which home, 0 to homes - 1.
        homes: How many there are; they share no utterance with `held_out`.
        seed: Of the run's data.
        examples: Rows.
    """
    if not 0 <= index < homes:
        raise ValueError(f"home {index} of {homes} does not exist")
    chance = _random("home", seed, index)
    intents = labels()
    # A Dirichlet draw is normalised gamma draws.
    mix = [chance.gammavariate(_CONCENTRATION, 1.0) + 1e-3 for _ in intents]
    by_intent = _by_intent(held_out_templates=False, seed=seed)
    forbidden = {row["text"] for row in held_out(seed=seed, homes=homes)}
    names = _names(seed, index)
    rows: list[dict[str, str]] = []
    while len(rows) < examples:
        intent = chance.choices(intents, mix)[0]
        text = _utterance(chance.choice(by_intent[intent]), names, chance)
        if text not in forbidden and not _ambiguous(text, intent, seed):
            rows.append({"text": text, "label": intent})
    return rows


@lru_cache(maxsize=4)
def _held_out_rows(seed: int, homes: int, examples: int) -> tuple[tuple[str, str], ...]:
    chance = _random("held out", seed, homes)
    by_intent = _by_intent(held_out_templates=True, seed=seed)
    names = [_names(seed, index) for index in range(homes + 1)]
    rows: dict[str, str] = {}
    clashes: set[str] = set()
    intents = labels()
    for turn in range(40 * examples):
        intent = intents[turn % len(intents)]
        text = _utterance(chance.choice(by_intent[intent]), chance.choice(names), chance)
        if rows.setdefault(text, intent) != intent:
            clashes.add(text)
        if len(rows) >= examples:
            break
    return tuple((text, intent) for text, intent in rows.items() if text not in clashes)


def held_out(seed: int = 0, homes: int = 4, examples: int = 1000) -> list[dict[str, str]]:
    """Utterances from templates that no home has, with the names of all homes and of one that takes no part."""
    return [{"text": text, "label": intent} for text, intent in _held_out_rows(seed, homes, examples)]


def _random(*words: object) -> random.Random:
    digest = hashlib.sha256("/".join(["voice intents 1", *map(str, words)]).encode()).digest()
    return random.Random(int.from_bytes(digest, "little"))  # noqa: S311 - data, not secrets


@lru_cache(maxsize=1)
def _templates() -> tuple[Template, ...]:
    by_intent: dict[str, list[Template]] = {}
    for template in templates():
        by_intent.setdefault(template.intent, []).append(template)
    return tuple(template for own in by_intent.values() if len(own) >= _LEAST_TEMPLATES for template in own)


@lru_cache(maxsize=8)
def _by_intent(*, held_out_templates: bool, seed: int) -> dict[str, tuple[Template, ...]]:
    out = {}
    for intent in labels():
        own = [template for template in _templates() if template.intent == intent]
        own.sort(
            key=lambda template: hashlib.sha256(f"split/{seed}/{template.intent}/{template.text}".encode()).digest()
        )
        count = max(1, round(_HELD_OUT_SHARE * len(own)))
        out[intent] = tuple(own[:count] if held_out_templates else own[count:])
    return out


def _names(seed: int, index: int) -> _Home:
    chance = _random("names", seed, index)
    things = {}
    for domain, words in THINGS.items():
        chosen = chance.sample(words, min(3, len(words)))
        plain = domain in ("person", "todo", "scene", "script", "weather")
        things[domain] = tuple(word if plain else f"{chance.choice(MODIFIERS)} {word}" for word in chosen)
    return _Home(tuple(chance.sample(AREAS, 10)), tuple(chance.sample(FLOORS, 3)), things)


def _utterance(template: Template, names: _Home, chance: random.Random) -> str:
    expression = walk(template, chance)
    return sentence(template, expression, dict(_chosen(expression, template, names, chance)))


def _chosen(
    expression: Expression, template: Template, names: _Home, chance: random.Random
) -> Iterator[tuple[str, str]]:
    for reference in references(expression):
        name = reference.list_name
        yield name, _value(reference, name, template, names, chance)


def _value(reference: ListReference, name: str, template: Template, names: _Home, chance: random.Random) -> str:
    if name == "area":
        return chance.choice(names.areas)
    if name == "floor":
        return chance.choice(names.floors)
    if name == "name":
        return chance.choice(names.things[chance.choice(_domains(template))])
    if name in FREE_TEXT:
        return chance.choice(FREE_TEXT[name])
    known = known_list(name, template.block)
    if isinstance(known, RangeSlotList):
        return str(chance.choice(list(known.get_numbers())))
    if isinstance(known, TextSlotList):
        (value, *_) = hassil.sample.sample_expression(narrowed(chance.choice(known.values).text_in, {}, chance), {}, {})
        return str(value)
    if isinstance(known, WildcardSlotList) or known is None:
        raise MissingListError(f"no words for {{{name}}} in {reference}")
    raise TypeError(f"list {name} is of unknown kind {type(known).__name__}")


def _domains(template: Template) -> list[str]:
    """Domains that a `{name}` in this template may be of."""
    wanted = [domain for domain in template.domains if domain in THINGS]
    return wanted or ["light", "switch", "fan", "media_player"]


@lru_cache(maxsize=2)
def _held_out_labels(seed: int) -> dict[str, str]:
    return {row["text"]: row["label"] for row in held_out(seed=seed)}


def _ambiguous(text: str, intent: str, seed: int) -> bool:
    return _held_out_labels(seed).get(text, intent) != intent
