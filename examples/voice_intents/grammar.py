# SPDX-License-Identifier: Apache-2.0
"""Home Assistant's own sentence templates, and one random walk through a template.

The package `home-assistant-intents` ships the templates; `hassil` parses and samples them. A template such as
`<turn> on [<the>] {name}` stands for thousands of sentences, so a sentence is one random walk: every alternative of the
parsed template is narrowed to one choice, every list to one word, and hassil samples what is left."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import hassil.sample
from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    Sentence,
    Sequence,
)
from hassil.intents import IntentData, Intents, SlotList, TextSlotList
from home_assistant_intents import get_intents

__all__ = ["Template", "grammar", "known_list", "narrowed", "references", "sentence", "templates", "walk"]


@dataclass(frozen=True)
class Template:
    """One sentence template of an intent, and the block of the grammar that it stands in."""

    intent: str
    text: str
    sentence: Sentence
    block: IntentData

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains that a `{name}` in it may be of, sorted; none where the grammar does not say."""
        wanted: Any = (
            self.block.name_domains or self.block.requires_context.get("domain") or self.block.slots.get("domain")
        )
        if isinstance(wanted, dict):
            wanted = wanted.get("value")
        return tuple(sorted([wanted] if isinstance(wanted, str) else wanted or ()))


@lru_cache(maxsize=1)
def grammar() -> Intents:
    """The English grammar."""
    raw: dict[str, Any] | None = get_intents("en")
    assert raw is not None
    return Intents.from_dict(raw)


@lru_cache(maxsize=1)
def templates() -> tuple[Template, ...]:
    """All templates by intent; the same template in two blocks (another context) is one."""
    found: list[Template] = []
    for name, intent in sorted(grammar().intents.items()):
        own = [
            Template(name, text, sentence, block)
            for block in intent.data
            for text, sentence in zip(block.sentence_texts, block.sentences, strict=True)
        ]
        found += {template.text: template for template in own}.values()
    return tuple(found)


def walk(template: Template, chance: random.Random) -> Expression:
    """The template with one choice made everywhere; its lists are left."""
    return narrowed(template.sentence.expression, _rules(template), chance)


def narrowed(expression: Expression, rules: Mapping[str, Sentence], chance: random.Random) -> Expression:
    """The expression with one choice made at every alternative, rule and order."""
    if isinstance(expression, RuleReference):
        return narrowed(rules[expression.rule_name].expression, rules, chance)
    if isinstance(expression, Alternative):
        return narrowed(chance.choice(expression.items), rules, chance)
    if isinstance(expression, Permutation):
        # The spaces that hassil's sampler puts between the parts of a permutation are part of their text.
        items = [narrowed(item, rules, chance) for item in chance.sample(expression.items, len(expression.items))]
        return Sequence(items=items)
    if isinstance(expression, Group):
        return Sequence(items=[narrowed(item, rules, chance) for item in expression.items])
    return expression


def references(expression: Expression) -> Iterator[ListReference]:
    """The lists that a narrowed expression speaks of, in spoken order."""
    return iter(expression.list_references()) if isinstance(expression, Group) else iter(())


def known_list(name: str, block: IntentData) -> SlotList | None:
    """A list of the grammar; a block's own comes first."""
    return block.slot_lists.get(name) or grammar().slot_lists.get(name)


def sentence(template: Template, expression: Expression, values: Mapping[str, str]) -> str:
    """The words of a narrowed expression, with `values` for its lists."""
    lists: dict[str, SlotList] = {name: TextSlotList.from_strings([text], name=name) for name, text in values.items()}
    (text,) = hassil.sample.sample_expression(expression, lists, _rules(template), language="en")
    return " ".join(text.split())


def _rules(template: Template) -> dict[str, Sentence]:
    return {**grammar().expansion_rules, **template.block.expansion_rules}
