# SPDX-License-Identifier: Apache-2.0
"""What a value is that was read, in words for a person: the library that reads it speaks of its own types."""

from __future__ import annotations

import difflib
import re
from typing import Any, Final, TypeVar

import msgspec

from fedcore.errors import ConfigError

__all__ = ["converted", "in_words"]

S = TypeVar("S", bound=msgspec.Struct)
_KINDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a section",
    "null": "nothing",
}
_BOUND: Final = {">=": "at least", ">": "above", "<=": "at most", "<": "below"}
_PLACE: Final = re.compile(r"^(.*?)(?: - at `(?:key in )?\$\.?(.*?)`)?$", re.DOTALL)


def in_words(message: str) -> str:
    """A validation error's message, without its place.

    Example:
        >>> in_words("Expected `int`, got `str`"), in_words("Expected `int` >= 1")
        ('a whole number is needed, and this is text', 'it must be at least 1')
        >>> in_words("Object missing required field `run`"), in_words("Invalid enum value 'x'")
        ("'run' is missing", "invalid value 'x'")
    """
    if found := re.fullmatch(r"Expected `([\w |]+)`, got `([\w |]+)`", message):
        wanted, got = (" or ".join(_KINDS.get(kind, kind) for kind in part.split(" | ")) for part in found.groups())
        return f"{wanted} is needed, and this is {got}"
    if found := re.fullmatch(r"Expected `\w+`.* (>=|>|<=|<) (\S+)", message):
        length = "its length" if "length" in message else "it"
        return f"{length} must be {_BOUND[found[1]]} {found[2]}"
    if found := re.fullmatch(r"Object missing required field `(.+)`", message):
        return f"{found[1]!r} is missing"
    if found := re.fullmatch(r"Object contains unknown field `(.+)`", message):
        return f"unknown key {found[1]!r}"
    if found := re.fullmatch(r"Invalid (?:enum )?value (.+)", message):
        return f"invalid value {found[1]}"
    return message[:1].lower() + message[1:]


def converted(values: dict[str, Any], kind: type[S], *, place: str) -> S:
    """A section from what flags or a program say.

    Args:
        values: By key.
        kind: The section.
        place: Of errors: what was written; `--` where each key is a flag of its own name.

    Raises:
        ConfigError: A value cannot be; the place has its key too.

    Example:
        >>> from fedcore.config.sections import TaskSection
        >>> converted({"kind": "regression", "max_length": 8}, TaskSection, place="--task").max_length
        8
    """
    try:
        return msgspec.convert(values, kind)
    except ConfigError as error:
        raise ConfigError(error.message, place=f"{place}: {error.place}", remedy=error.remedy) from None
    except msgspec.ValidationError as error:
        # A section's own check arrives wrapped, with the original as the cause.
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise ConfigError(cause.message, place=f"{place}: {cause.place}", remedy=cause.remedy) from None
        found = _PLACE.match(str(error))
        message, key = (found[1], found[2] or "") if found else (str(error), "")
        said = in_words(message)
        near = difflib.get_close_matches(said, [f"unknown key {name!r}" for name in kind.__struct_fields__], 1, 0.9)
        remedy = f"did you mean {near[0].removeprefix('unknown key ')}?" if near and said.startswith("unknown") else ""
        where = f"--{key.replace('_', '-')}" if place == "--" else f"{place}: {key}".rstrip(": ")
        raise ConfigError(said, place=where, remedy=remedy) from None
