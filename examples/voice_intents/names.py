# SPDX-License-Identifier: Apache-2.0
"""Words that homes choose their own device, room and list names from."""

from __future__ import annotations

__all__ = ["AREAS", "FLOORS", "FREE_TEXT", "MODIFIERS", "THINGS"]

AREAS = (
    "kitchen", "living room", "bedroom", "bathroom", "office", "hallway", "garage", "garden", "attic", "basement", "nursery", "dining room",
    "guest room", "laundry room", "pantry", "library", "workshop", "conservatory", "porch", "terrace", "playroom", "study", "utility room",
    "master bedroom", "en suite", "gym", "music room", "cellar", "balcony", "entrance", "den", "wardrobe", "sun room", "mud room",
)  # fmt: skip
FLOORS = ("ground", "first", "second", "upper", "lower", "top", "main", "basement")

# What follows a modifier in a device's name, by Home Assistant's domain.
THINGS = {
    "light": ("lamp", "ceiling light", "spotlight", "desk lamp", "strip light", "chandelier", "reading light", "wall light"),
    "switch": ("coffee maker", "socket", "heater plug", "fountain", "kettle", "outlet", "christmas tree", "pump"),
    "fan": ("fan", "ceiling fan", "ventilator", "extractor fan"),
    "cover": ("blinds", "curtain", "garage door", "shutter", "shade", "awning", "gate"),
    "lock": ("lock", "door lock", "gate lock", "padlock"),
    "climate": ("thermostat", "air conditioner", "heating", "radiator"),
    "media_player": ("tv", "speaker", "stereo", "soundbar", "radio", "projector"),
    "vacuum": ("robot", "vacuum", "hoover", "roomba"),
    "lawn_mower": ("mower", "lawn robot"),
    "todo": ("groceries", "chores", "homework", "packing", "errands", "wish"),
    "scene": ("movie night", "party", "relax", "good night", "dinner time"),
    "script": ("wake up routine", "bedtime routine", "morning routine"),
    "valve": ("sprinkler valve", "water valve", "irrigation"),
    "sensor": ("thermometer", "humidity sensor", "power meter", "rain gauge"),
    "binary_sensor": ("motion sensor", "smoke detector", "window sensor", "leak sensor"),
    "person": ("anna", "ben", "carla", "dario", "elif", "farid", "greta", "hugo", "ines", "jonas"),
    "weather": ("weather station", "forecast"),
}
MODIFIERS = (
    "red", "blue", "old", "new", "big", "small", "left", "right", "front", "back", "upstairs", "downstairs", "corner", "smart", "round",
    "tall", "wooden", "glass", "north", "south", "main", "spare", "little", "silver",
)  # fmt: skip

# For the templates' open ends (a message, an item, something to play).
FREE_TEXT = {
    "message": (
        "dinner is ready",
        "we leave in ten minutes",
        "time for bed",
        "the taxi is here",
        "come to the table",
        "breakfast is served",
    ),
    "shopping_list_item": (
        "milk",
        "apples",
        "two loaves of bread",
        "coffee beans",
        "olive oil",
        "eggs",
        "toothpaste",
        "rice",
        "batteries",
    ),
    "todo_list_item": (
        "call the plumber",
        "water the plants",
        "pay the rent",
        "book flights",
        "fix the bike",
        "return the parcel",
    ),
    "search_query": ("jazz classics", "the beatles", "rock anthems", "mozart", "daft punk", "miles davis", "summer hits", "abba"),
    "timer_name": ("pasta", "pizza", "laundry", "tea", "homework", "oven", "nap", "workout"),
    "timer_command": (
        "turn off the lights",
        "open the blinds",
        "lock the door",
        "start the coffee maker",
        "close the garage door",
    ),
    "zone": ("work", "school", "the office", "grandma's house", "the gym"),
    "fan_mode": ("low", "medium", "high", "auto"),
}
