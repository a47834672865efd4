# SPDX-License-Identifier: Apache-2.0
"""Reading job and node files: TOML into frozen sections, and every mistake as one line with key and remedy."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from fedcore.config.sections import PATH
from fedcore.config.words import in_words
from fedcore.errors import ConfigError
from fedcore.fields.prepared import prepared

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["load_config", "parse_size"]

S = TypeVar("S", bound=msgspec.Struct)
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
}
_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")
_MAX_BYTES = 2**20
_MAX_ERROR = 500
_MAX_SIZE_TEXT = 40
_RENAMED = {"outcome_bits": "published_bits", "keep_outcomes": "keep_published"}
"""Keys of 0.1 that have another name since."""
_UNKNOWN = re.compile(r"unknown field `(.+?)`(?: - at `\$\.?(.*?)`)?$")
_OTHER = re.compile(r"^(.*?)(?: - at `\$\.?(.*?)`)?$")


def load_config(path: Path, kind: type[S], defaults: Mapping[str, Any] = MappingProxyType({})) -> S:
    """Read a TOML file as a frozen struct; relative paths in it are seen from the file's own folder.

    Args:
        path: The file.
        kind: What it is read as.
        defaults: Values of top-level keys and sections that the file does not have.

    Raises:
        ConfigError: No such file, not TOML, an unknown or missing key, a value of the wrong type or outside its range.
            The place is `file: section.key`; for an unknown key the remedy is the nearest one that exists.
    """
    raw = {**defaults, **_read_toml(path)}
    try:
        return _anchored(msgspec.convert(raw, prepared(kind)), path.absolute().parent)
    except msgspec.ValidationError as error:
        # A section's own check arrives wrapped, with the original as the cause.
        if isinstance(error.__cause__, ConfigError):
            cause = error.__cause__
            raise ConfigError(cause.message, place=f"{path}: {cause.place}", remedy=cause.remedy) from None
        raise _explained(str(error), path, kind, raw) from None
    except ConfigError as error:
        raise ConfigError(error.message, place=f"{path}: {error.place}", remedy=error.remedy) from None


def _anchored(value: S, folder: Path) -> S:
    """The struct with absolute paths, so that they hold whatever folder a service or a resumed run starts in."""
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(value):
        present = getattr(value, field.name)
        if isinstance(present, msgspec.Struct):
            changes[field.name] = _anchored(present, folder)
        elif isinstance(present, str) and any(PATH in get_args(kind) for kind in (field.type, *get_args(field.type))):
            changes[field.name] = _anchored_path(present, folder, field.name)
        elif isinstance(present, dict) and any(PATH in get_args(kind) for kind in get_args(field.type)):
            paths = {key: _anchored_path(path, folder, f"{field.name}.{key}") for key, path in present.items()}
            changes[field.name] = paths
    return msgspec.structs.replace(value, **changes)


def _anchored_path(text: str, folder: Path, key: str) -> str:
    if not text:
        return text
    try:
        found = folder / Path(text).expanduser()
        # `package:folder`, `package:name.gguf`, `package.module:function` and keys in hexadecimal are no paths.
        named = (":" in text and "/" not in text.partition(":")[0]) or _HEX_KEY.fullmatch(text)
        return text if named and not found.exists() else str(found)
    except (OSError, RuntimeError) as error:
        # A name that is too long; `~someone` without a home.
        raise ConfigError(f"{text[:80]!r} cannot be a path: {error}", place=key) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("no such file", place=str(path)) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder, not a file", place=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=str(path)) from None
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"more than {_MAX_BYTES} bytes", place=str(path))
    try:
        # An editor's byte order mark is no part of the text.
        raw = tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"not UTF-8: byte 0x{text[error.start]:02x} in line {line}", place=str(path), remedy="save it as UTF-8"
        ) from None
    except RecursionError:
        raise ConfigError("not TOML: lists nested too deeply", place=str(path)) from None
    # A plain ValueError is a number of thousands of digits.
    except ValueError as error:
        raise ConfigError(f"not TOML: {error}", place=str(path)) from None
    _check_values(raw, path, "")
    return raw


def _check_values(value: Any, path: Path, key: str) -> None:
    """What TOML can say and no key of ours can mean, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_values(inner, path, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner, path, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value} is not a number that can be meant here", place=f"{path}: {key}")
    elif isinstance(value, str) and "\0" in value:
        raise ConfigError("a text with a zero byte", place=f"{path}: {key}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ConfigError("a number of more than 64 bits", place=f"{path}: {key}")


def _explained(text: str, path: Path, kind: type[msgspec.Struct], raw: dict[str, Any]) -> ConfigError:
    # A key can be as long as the file, and these expressions look back.
    text = text[:_MAX_ERROR]
    if found := _UNKNOWN.search(text):
        key, section = found.group(1), found.group(2) or ""
        known = _keys(kind, section, raw)
        near = difflib.get_close_matches(key, known, 1)
        if _RENAMED.get(key) in known:
            return ConfigError(
                f"{key!r} has another name since 0.2", place=f"{path}: {section}", remedy=f"write {_RENAMED[key]}"
            )
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(f"unknown key {key!r}", place=f"{path}: {section or 'top level'}", remedy=remedy)
    found = _OTHER.match(text)
    message, section = (found.group(1), found.group(2) or "top level") if found else (text, "")
    choices = _choices(kind, section, raw) or _literals(kind, section, raw)
    said = re.search(r"'(.+)'", message)
    # Names are alike: only a slip of the pen is taken for another one.
    near = difflib.get_close_matches(said.group(1), choices, 1, 0.8) if said else []
    remedy = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(choices)}" if choices else ""
    return ConfigError(in_words(message), place=f"{path}: {section}", remedy=remedy)


def _structs(kind: Any, key: str) -> list[Any]:
    """The structs that a key may hold; several where a key inside says which."""
    hint = get_type_hints(kind).get(key)
    return [t for t in (hint, *get_args(hint)) if isinstance(t, type) and issubclass(t, msgspec.Struct)]


def _struct_at(kind: Any, section: str, raw: Any) -> Any:
    """What a section is read as; None where it is no struct."""
    for part in filter(None, section.split(".")):
        structs = _structs(kind, part)
        raw = raw.get(part, {}) if isinstance(raw, dict) else {}
        chosen = [t for t in structs if t.__struct_config__.tag in (None, raw.get(t.__struct_config__.tag_field))]
        if not chosen:
            return None
        kind = chosen[0]
    return kind


def _keys(kind: Any, section: str, raw: Any) -> list[str]:
    found = _struct_at(kind, section, raw)
    return [] if found is None else list(found.__struct_fields__)


def _literals(kind: Any, section: str, raw: Any) -> list[str]:
    """The values that a key may have, where they are few; none of other keys."""
    above, _, key = section.rpartition(".")
    hint = get_type_hints(found).get(key) if (found := _struct_at(kind, above, raw)) is not None else None
    return [str(value) for one in (hint, *get_args(hint)) if get_origin(one) is Literal for value in get_args(one)]


def _choices(kind: Any, section: str, raw: Any) -> list[str]:
    """The names that a key may have which chooses between structs; none for other keys."""
    above, _, key = section.rpartition(".")
    for holder, name in ((above, key), (section, "")):
        outer, _, inner = holder.rpartition(".")
        found = _struct_at(kind, outer, raw) if inner else None
        structs = [] if found is None else _structs(found, inner)
        tagged = [str(t.__struct_config__.tag) for t in structs if t.__struct_config__.tag is not None]
        if tagged and (not name or structs[0].__struct_config__.tag_field == name):
            return tagged
    return []


def parse_size(text: str, *, place: str = "") -> int:
    """A size such as `2.5 GiB`, `800MB` or `1073741824` in bytes.

    Raises:
        ConfigError: Not a size; the remedy shows what one looks like.

    Example:
        >>> parse_size("1.5 GiB")
        1610612736
    """
    if len(text) > _MAX_SIZE_TEXT:
        raise ConfigError(
            f"{text[:_MAX_SIZE_TEXT]!r}... is not a size", place=place, remedy="write a number and a unit: 2.5 GiB"
        )
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found.group(2).lower() if found else None
    if found is None or unit not in _UNITS:
        amount = re.search(r"\d+(?:\.\d+)?", text)
        # `gigs`, `Gb ram`: the first letter of what follows the number says which unit is meant.
        letter = re.search(r"\d\s*([kmg])", text.lower())
        unit_meant = {"k": "KiB", "m": "MiB", "g": "GiB"}[letter.group(1)] if letter else "GiB"
        meant = f"{amount.group()} {unit_meant}" if amount else "2.5 GiB"
        raise ConfigError(f"{text!r} is not a size", place=place, remedy=f"write a number and a unit: {meant}")
    return int(float(found.group(1)) * _UNITS[unit])
