# SPDX-License-Identifier: Apache-2.0
"""Which commands there are, and the one call that each means.

A call is the body that Home Assistant's `/api/intent/handle` takes: `{"name": INTENT, "data": {SLOT: VALUE}}`. Its form
is canonical, so that a sentence has one right answer: only what is spoken, in spoken order, numbers as numbers, no
spaces. What a sentence does not decide is left out: a device's kind that no word names, a word that means another value
than itself, a floor without the word "floor"."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import hassil.sample
from hassil.expression import Expression, ListReference
from hassil.intents import RangeSlotList, TextSlotList

from examples.intent_calls.names import Household
from examples.voice_intents.grammar import Template, known_list, narrowed, references, sentence, templates, walk

__all__ = ["COMBINATIONS", "Command", "command", "intents", "usable"]

_TIMER = ("default", "area_only", "name_only", "hours_only", "minutes_only", "seconds_only")
_SWITCH = ("name_only", "name_area", "name_floor", "domain_only", "domain_all", "area_domain", "floor_domain")

COMBINATIONS: Mapping[str, tuple[str, ...]] = {
    "HassCancelTimer": _TIMER,
    "HassClimateGetTemperature": ("default", "area_only", "name_only"),
    "HassClimateSetFanMode": ("fan_mode_only", "area_fan_mode", "floor_fan_mode", "name_fan_mode"),
    "HassClimateSetTemperature": ("temperature_only", "area_temperature", "floor_temperature", "name_temperature"),
    "HassFanSetSpeed": ("default", "area_only", "floor_only", "name_only"),
    "HassGetState": ("name_state", "domain_state", "domain_state_area", "domain_state_floor"),
    "HassLightSet": (
        *("brightness_only", "area_brightness", "floor_brightness", "name_brightness"),
        *("color_only", "area_color", "floor_color", "name_color"),
    ),
    "HassMediaNext": ("default", "area_only", "name_only"),
    "HassMediaPrevious": ("default", "area_only", "name_only"),
    "HassMediaSearchAndPlay": ("default", "area_only", "name_only", "name_area"),
    "HassPauseTimer": _TIMER,
    "HassSetVolume": ("default", "area_only", "name_only"),
    "HassStartTimer": (
        *("hours_only", "minutes_only", "seconds_only", "hours_minutes", "minutes_seconds"),
        *("name_hours", "name_minutes", "name_seconds"),
    ),
    "HassTimerStatus": _TIMER,
    "HassTurnOff": _SWITCH,
    "HassTurnOn": _SWITCH,
    "HassUnpauseTimer": _TIMER,
}
"""The intents, and of each the combinations of slots (the grammar's names for them)."""

# Templates whose sentences are no English that anybody would type, or that name no verb.
_LEFT_OUT = ("[<the>] {name}", "{timer_half", "{name} <light>", "{brightness_level")
_KINDS = {"light": r"light(?:s|ing)?|lamps?", "fan": r"fans?", "switch": r"switch(?:es)?", "lock": r"locks?"}
"""Words for a domain."""
_QUANTITIES = {
    "brightness": r"brightness",
    "volume_level": r"volume",
    "percentage": r"fans?|speed",
    "temperature": r"temp|temperature|degrees?|°",
}
"""Words for what a number is of, by slot: "kitchen 40" may be brightness or volume."""
_QUESTION = re.compile(r"(?:is|are|which|what|how)\b")


@dataclass(frozen=True)
class Command:
    """A spoken command and the call that it means."""

    text: str
    intent: str
    slots: Mapping[str, str | float]

    @property
    def call(self) -> str:
        """The call as canonical JSON.

        >>> Command("turn on the lamp", "HassTurnOn", {"name": "lamp"}).call
        '{"name":"HassTurnOn","data":{"name":"lamp"}}'
        """
        return json.dumps({"name": self.intent, "data": dict(self.slots)}, separators=(",", ":"))


def intents() -> tuple[str, ...]:
    """The intents, sorted."""
    return tuple(sorted(COMBINATIONS))


@lru_cache(maxsize=1)
def usable() -> Mapping[str, tuple[Template, ...]]:
    """Each intent's templates."""
    return {
        intent: tuple(template for template in templates() if template.intent == intent and _usable(template))
        for intent in intents()
    }


def _usable(template: Template) -> bool:
    if template.block.metadata.get("slot_combination") not in COMBINATIONS[template.intent]:
        return False
    if template.text == _LEFT_OUT[0] or any(part in template.text for part in _LEFT_OUT[1:]):
        return False
    # Sensors, scenes and persons have states and verbs that stand for other words.
    return "{name}" not in template.text or "binary_sensor" not in template.domains


def command(template: Template, household: Household, chance: random.Random) -> Command | None:
    """One random sentence of a template with a household's names; None where it does not decide one call."""
    expression = walk(template, chance)
    spoken: dict[str, str] = {}
    slots: dict[str, str | float] = {}
    for reference in references(expression):
        value = _value(reference, template, household, chance)
        if value is None or reference.slot_name in slots:
            return None
        spoken[reference.list_name], slots[reference.slot_name] = str(value), value
    text = sentence(template, expression, spoken)
    if not _decided(template, text, slots):
        return None
    domain = template.block.slots.get("domain")
    if domain is not None and template.intent != "HassLightSet":
        placed = _with_kind(text, str(domain), slots)
        if placed is None:
            return None
        slots = placed
    return Command(text, template.intent, slots)


def _decided(template: Template, text: str, slots: Mapping[str, str | float]) -> bool:
    """Whether the words say what each value is, and whether a question is one ("all lights on" is none)."""
    if "floor" in slots and "floor" not in text.split():
        return False
    if template.intent == "HassGetState" and not _QUESTION.match(text):
        return False
    return all(re.search(words, text) for slot, words in _QUANTITIES.items() if slot in slots)


def _with_kind(text: str, domain: str, slots: Mapping[str, str | float]) -> dict[str, str | float] | None:
    """Slots with the domain where a word of the sentence names it; None where none does."""
    found = re.search(rf"\b(?:{_KINDS.get(domain, domain)})\b", text)
    if found is None:
        return None
    at = found.start()
    before = {slot: value for slot, value in slots.items() if 0 <= _at(text, str(value)) < at}
    after = {slot: value for slot, value in slots.items() if slot not in before}
    return {**before, "domain": domain, **after}


def _at(text: str, words: str) -> int:
    found = re.search(rf"\b{re.escape(words)}\b", text)
    return found.start() if found else -1


def _value(
    reference: ListReference, template: Template, household: Household, chance: random.Random
) -> str | float | None:
    name = reference.list_name
    if name == "name":
        return household.thing(template.domains, chance)
    if name in household.words:
        return chance.choice(household.words[name])
    known = known_list(name, template.block)
    if isinstance(known, RangeSlotList):
        number: float = chance.choice(list(known.get_numbers()))
        return number
    if isinstance(known, TextSlotList):
        value = chance.choice(known.values)
        text = _words(value.text_in, chance)
        return text if text == value.value_out else None
    return None


def _words(expression: Expression, chance: random.Random) -> str:
    (text, *_) = hassil.sample.sample_expression(narrowed(expression, {}, chance), {}, {})
    return str(text)
