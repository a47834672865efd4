# SPDX-License-Identifier: Apache-2.0
"""Methods as the command line names them: `fedkrso`, or with options in brackets `fedkrso[schedule=fresh,rank=4]`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import msgspec

from fedcore.errors import ConfigError
from fedcore.fields.types import BaseKind, HeadBegin, Pooling
from fedcore.methods import AnySettings, settings_by_name
from fedcore.methods.interface import MethodSettings

__all__ = ["Named", "Usual", "parse_methods", "settings_of"]

_PLACE = "--methods"
_ONE = re.compile(r"([a-z0-9+-]+)(?:\[([^\[\]]*)\])?")
_BESIDE = ("head", "pooling", "head_rate", "trained", "average", "again")
_KINDS: dict[str, type[MethodSettings]] = settings_by_name()


@dataclass(frozen=True)
class Usual:
    """What holds for every method whose brackets say nothing else.

    Attributes:
        head: What a new head begins with, `random` or `ridge`; methods that do not share theirs have a random one.
        pooling: What of a text it looks at, as `task.pooling` of a job; what all tables of before were measured with.
        head_rate: `tensor_learning_rate` as a multiple of the learning rate: a search moves both; None: its own.
        trained: Patterns of checkpoint tensors that are trained whole beside the head.
        average: As `round.average_last` of a job.
        again: As `head.again` of a job; the heads after the first come beside a run's rounds.
    """

    head: HeadBegin = "random"
    pooling: Pooling = "model"
    head_rate: float | None = None
    trained: tuple[str, ...] = ()
    average: int = 1
    again: int = 0


@dataclass(frozen=True)
class Named:
    """A method of the command line.

    Attributes:
        label: The text, without blanks; its name in every table.
        name: The method's.
        options: What the brackets say, as text.
        base: How target layers are held, where the brackets say so.
        usual: The rest, as the brackets have it, or as it is for all methods.
        own_head: Whether the brackets say what a head begins with.
    """

    label: str
    name: str
    options: Mapping[str, str]
    base: BaseKind | None = None
    usual: Usual = Usual()
    own_head: bool = False


def parse_methods(text: str, usual: Usual = Usual()) -> tuple[Named, ...]:
    """A list separated by commas.

    Args:
        text: Of the command line.
        usual: Where brackets say nothing else.

    Raises:
        ConfigError: No such method or option, a method twice, or a bracket that is not closed.

    Example:
        >>> [one.label for one in parse_methods("fedavg,fedkrso[rank=4,base=float32]")]
        ['fedavg', 'fedkrso[rank=4,base=float32]']
    """
    compact = "".join(text.split())
    # A comma outside of brackets.
    found = tuple(_parsed(part, usual) for part in re.split(r",(?![^\[\]]*\])", compact))
    labels = [one.label for one in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is there twice", place=_PLACE)
    return found


def _parsed(text: str, usual: Usual) -> Named:
    found = _ONE.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{text!r} is not a method", place=_PLACE, remedy="write fedkrso, or fedkrso[rank=4,schedule=fresh]"
        )
    name, inner = found.groups()
    if name not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, 1)
        raise ConfigError(
            f"no method {name!r}",
            place=_PLACE,
            remedy=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(_KINDS)}",
        )
    options: dict[str, str] = {}
    for option in inner.split(",") if inner else ():
        key, separator, value = option.partition("=")
        if not separator or not key or not value:
            raise ConfigError(f"{option!r} is not an option", place=f"{_PLACE} {name}", remedy="write option=value")
        if key in options:
            raise ConfigError(f"{key} is there twice", place=f"{_PLACE} {name}")
        options[key] = value
    base, own_head = options.pop("base", None), "head" in options
    own = _usual(options, usual, f"{_PLACE} {name}")
    try:
        return Named(text, name, options, None if base is None else msgspec.convert(base, BaseKind), own, own_head)
    except msgspec.ValidationError:
        raise ConfigError(
            f"{base!r} is not a base", place=f"{_PLACE} {name}", remedy="int8, float32, bfloat16 or float16"
        ) from None


def _usual(options: dict[str, str], usual: Usual, place: str) -> Usual:
    """What brackets say in its place; taken out of the options."""
    head, pooling = options.pop("head", None), options.pop("pooling", None)
    rate, trained = options.pop("head_rate", None), options.pop("trained", None)
    counts: dict[str, Any] = {
        key: _count(options.pop(key), key, place) for key in ("average", "again") if key in options
    }
    if head is not None and head not in get_args(HeadBegin):
        raise ConfigError(f"{head!r} is no start of a head", place=place, remedy="random or ridge")
    if pooling is not None and pooling not in get_args(Pooling):
        raise ConfigError(f"{pooling!r} is no pooling", place=place, remedy=f"one of {', '.join(get_args(Pooling))}")
    value = None if rate is None else _value(rate)
    if isinstance(value, str) or (value is not None and value <= 0):
        raise ConfigError(f"head_rate {rate} is no factor above 0", place=place, remedy="write head_rate=2")
    changes: dict[str, Any] = {
        "head": head,
        "pooling": pooling,
        "head_rate": value,
        "trained": trained and tuple(trained.split("+")),
        **counts,
    }
    return replace(usual, **{key: change for key, change in changes.items() if change is not None})


def settings_of(named: Named, preset: Mapping[str, Any], learning_rate: float | None = None) -> AnySettings:
    """The method's settings: its defaults, over them the preset's where the method has them, a tuned learning rate, and
    the brackets.

    Args:
        named: The method.
        preset: Values by field.
        learning_rate: Chosen on the tuning rows; None for the default.

    Raises:
        ConfigError: An option that the method does not have, or a value that it cannot have.
    """
    kind = _KINDS[named.name]
    place = f"{_PLACE} {named.label}"
    unknown = next((key for key in named.options if key.partition(".")[0] not in kind.__struct_fields__), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, kind.__struct_fields__, 1)
        remedy = (
            f"did you mean {near[0]!r}?"
            if near
            else f"options: {', '.join(kind.__struct_fields__)}, base, {', '.join(_BESIDE)}"
        )
        raise ConfigError(f"{named.name} has no option {unknown!r}", place=place, remedy=remedy)
    fields: dict[str, Any] = {key: value for key, value in preset.items() if key in kind.__struct_fields__}
    if learning_rate is not None:
        fields["learning_rate"] = learning_rate
    rate = named.usual.head_rate
    for key, value in named.options.items():
        outer, dot, inner = key.partition(".")
        # `peft.type=ia3`: a table of its own.
        fields[outer] = {**fields.get(outer, {}), inner: _value(value)} if dot else _value(value)
    try:
        settings: Any = msgspec.convert({"name": named.name, **fields}, kind)
    except ConfigError as error:
        raise ConfigError(
            error.message, place=f"{place}: {error.place.removeprefix('method.')}", remedy=error.remedy
        ) from None
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace("`", "").replace(" - at $.", ", at "), place=place) from None
    if rate is not None and "tensor_learning_rate" not in named.options:
        # Two digits, as learning rates of a search have.
        own = float(f"{rate * settings.learning_rate:.2g}")
        settings = msgspec.structs.replace(settings, tensor_learning_rate=own)
    made: AnySettings = settings
    return made


def _count(text: str, key: str, place: str) -> int:
    value = _value(text)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} {text} is no number of rounds", place=place, remedy=f"write {key}=4")
    return value


def _value(text: str) -> int | float | str:
    """The number that a text is, if it is a finite one."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text
