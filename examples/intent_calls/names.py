# SPDX-License-Identifier: Apache-2.0
"""What a household calls its rooms, floors and devices.

A fifth of all words is kept for households that take no part in training: their names are new to the model."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from examples.voice_intents.names import AREAS, FLOORS, FREE_TEXT, MODIFIERS, THINGS

__all__ = ["Household", "household"]

# A room or a floor, or a floor or a device's first word: what it is nobody can say.
_AMBIGUOUS = ("basement", "main")
_KEPT_SHARE = 0.2
_AREAS, _FLOORS, _THINGS = 16, 4, 6
"""Rooms and floors of a household, and its devices of each kind."""
_KINDS = ("climate", "fan", "light", "lock", "media_player", "switch", "cover")

_AREA_NAMES = (
    *AREAS,
    *("loft", "cloakroom", "scullery", "boot room", "games room", "home cinema", "sauna", "greenhouse", "shed"),
    *("carport", "driveway", "patio", "roof deck", "courtyard", "landing", "corridor", "stairwell", "lobby"),
    *("boiler room", "wine cellar", "drawing room", "reading room", "sewing room", "craft room", "studio", "lounge"),
    *("breakfast room", "kids room", "twins room", "spare room", "dressing room", "shower room", "powder room"),
)
_DEVICE_WORDS = (
    *MODIFIERS,
    *("green", "yellow", "white", "black", "grey", "golden", "copper", "brass", "steel", "marble", "bamboo", "velvet"),
    *("paper", "ceramic", "crystal", "oak", "pine", "walnut", "narrow", "wide", "short", "square", "oval", "curved"),
    *("slim", "heavy", "quiet", "loud", "fancy", "ancient", "modern", "vintage", "rustic", "cheap", "lucky", "sunny"),
    *("east", "west", "middle", "centre", "outer", "inner", "rear", "window", "desk", "shelf", "bedside", "wall"),
    *("anna", "ben", "carla", "dario", "elif", "farid", "greta", "hugo", "ines", "jonas", "kira", "liam", "mona"),
    *("grandma", "baby", "guest", "visitor", "dog", "cat", "winter", "summer", "holiday", "party", "night", "morning"),
)
_FREE = {
    "search_query": (
        *FREE_TEXT["search_query"],
        *("vivaldi", "queen", "david bowie", "classic soul", "nina simone", "latin dance", "bach", "the cure"),
        *("lo-fi beats", "country roads", "radiohead", "piano for sleep", "bob marley", "chopin", "movie themes"),
        *("johnny cash", "disco nights"),
    ),
    "timer_name": (
        *FREE_TEXT["timer_name"],
        *("bread", "eggs", "rice", "cookies", "chicken", "coffee", "soup", "roast", "yoga", "shower", "reading"),
        *("dishwasher", "medicine", "potatoes", "break", "meeting", "cake"),
    ),
}


@dataclass(frozen=True)
class Household:
    """One household's names.

    Attributes:
        things: Device names by domain.
        words: Choices for the grammar's other lists, by name.
    """

    things: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[str, ...]]

    def thing(self, domains: Collection[str], chance: random.Random) -> str | None:
        """A device of one of these domains; None where there is none."""
        fitting = [domain for domain in self.things if domain in domains]
        return chance.choice(self.things[chance.choice(fitting)]) if fitting else None


def household(chance: random.Random, kept: random.Random, *, new: bool) -> Household:
    """Draw a household's names.

    Args:
        chance: Of the household.
        kept: Decides which words are kept from training; equally seeded for all households.
        new: From the kept words, which no other household uses; else from the others.
    """

    def of(words: Sequence[str]) -> list[str]:
        known = [word for word in words if word not in _AMBIGUOUS]
        count = max(2, round(_KEPT_SHARE * len(known)))
        aside = set(kept.sample(known, count))
        return [word for word in known if (word in aside) == new]

    areas, floors, first_words = of(_AREA_NAMES), of(FLOORS), of(_DEVICE_WORDS)
    free = {name: tuple(of(words)) for name, words in _FREE.items()}
    things = {
        domain: tuple(
            f"{chance.choice(first_words)} {word}"
            for word in chance.sample(THINGS[domain], min(_THINGS, len(THINGS[domain])))
        )
        for domain in _KINDS
    }
    words = {
        "area": tuple(chance.sample(areas, min(_AREAS, len(areas)))),
        "floor": tuple(chance.sample(floors, min(_FLOORS, len(floors)))),
        **free,
        "fan_mode": FREE_TEXT["fan_mode"],
    }
    return Household(things, words)
