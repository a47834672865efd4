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
_AREAS, _NAMED_AREAS, _FLOORS, _OF_EACH = 14, 10, 4, 2
"""Rooms of a household, rooms with a first word of their own, floors, and devices of each of 41 sorts."""
_ROOMS = ("room", "bedroom", "bathroom", "hall")
_KINDS = ("climate", "fan", "light", "lock", "media_player", "switch", "cover")

_AREA_NAMES = (
    *AREAS,
    *("loft", "cloakroom", "scullery", "boot room", "games room", "home cinema", "sauna", "greenhouse", "shed"),
    *("carport", "driveway", "patio", "roof deck", "courtyard", "landing", "corridor", "stairwell", "lobby"),
    *("boiler room", "wine cellar", "drawing room", "reading room", "sewing room", "craft room", "studio", "lounge"),
    *("breakfast room", "kids room", "twins room", "spare room", "dressing room", "shower room", "powder room"),
)
_FIRST_WORDS = (
    *MODIFIERS,
    *("green", "yellow", "white", "black", "grey", "golden", "copper", "brass", "steel", "marble", "bamboo"),
    *("velvet", "paper", "ceramic", "crystal", "oak", "pine", "walnut", "narrow", "wide", "short", "square", "oval"),
    *("curved", "slim", "heavy", "quiet", "loud", "fancy", "ancient", "modern", "vintage", "rustic", "cheap"),
    *("lucky", "sunny", "east", "west", "middle", "centre", "outer", "inner", "rear", "window", "desk", "shelf"),
    *("bedside", "wall", "anna", "ben", "carla", "dario", "elif", "farid", "greta", "hugo", "ines", "jonas", "kira"),
    *("liam", "mona", "nadia", "oscar", "paula", "quentin", "rosa", "samir", "tilda", "ursula", "victor", "wanda"),
    *("xavier", "yusuf", "zoe", "albert", "bianca", "conrad", "doris", "emil", "frida", "gustav", "helga", "igor"),
    *("julia", "konrad", "lotte", "marcel", "nora", "otto", "priya", "ralph", "sofia", "tomas", "vera", "walter"),
    *("yvonne", "grandma", "grandpa", "baby", "visitor", "dog", "cat", "rabbit", "parrot", "turtle", "winter"),
    *("summer", "spring", "autumn", "holiday", "birthday", "morning", "evening", "maple", "cedar", "willow", "birch"),
    *("cherry", "lemon", "orange", "apricot", "plum", "olive", "rose", "tulip", "lily", "violet", "jasmine"),
    *("lavender", "orchid", "daisy", "amber", "ruby", "emerald", "sapphire", "pearl", "ivory", "turquoise", "indigo"),
    *("scarlet", "crimson", "beige", "bronze", "iron", "chrome", "leather", "cotton", "linen", "wool", "silk"),
    *("canvas", "granite", "slate", "brick", "concrete", "plastic", "rubber", "tiny", "giant", "huge", "double"),
    *("single", "triple", "mini", "compact", "portable", "floating", "hanging", "standing", "folding", "sliding"),
    *("rolling", "bright", "dim", "warm", "cool", "soft", "gentle", "silent", "rapid", "lazy", "clever", "happy"),
    *("grumpy", "broken", "dusty", "shiny", "polished", "striped", "spotted", "nordic", "italian", "french"),
    *("spanish", "danish", "moroccan", "japanese", "turkish", "alpine", "coastal", "desert", "island", "harbour"),
    *("river", "forest", "meadow", "mountain", "valley", "sunset", "midnight", "moon", "star", "comet", "saturn"),
    *("jupiter", "alpha", "beta", "gamma", "delta", "omega"),
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

    areas, floors, first_words = of(_AREA_NAMES), of(FLOORS), of(_FIRST_WORDS)
    free = {name: tuple(of(words)) for name, words in _FREE.items()}
    things = {
        domain: tuple(f"{first} {word}" for word in THINGS[domain] for first in chance.sample(first_words, _OF_EACH))
        for domain in _KINDS
    }
    words = {
        "area": (
            *chance.sample(areas, min(_AREAS, len(areas))),
            *(f"{first} {chance.choice(_ROOMS)}" for first in chance.sample(first_words, _NAMED_AREAS)),
        ),
        "floor": tuple(chance.sample(floors, min(_FLOORS, len(floors)))),
        **free,
        "fan_mode": FREE_TEXT["fan_mode"],
    }
    return Household(things, words)
