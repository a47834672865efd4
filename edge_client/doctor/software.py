# SPDX-License-Identifier: Apache-2.0
"""Python, this package, and what it needs, against its own lower bounds."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from edge_client.doctor.base import Check, Surroundings
from edge_client.node import Node

__all__ = ["packages", "software"]

_GROUP = "software"
# Measured as an option and used by the benchmarks; the layer that trains is our own.
_OPTIONAL = ("bitsandbytes",)
_TRAIN = "pip install 'fedkrso[train]'"


def software(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """Every check of the group `software`: Python and packages."""
    del node
    try:
        needed = requires("fedkrso") or []
        own = Check(_GROUP, "fedkrso", "ok", version("fedkrso"))
    except PackageNotFoundError:
        needed, own = [], Check(_GROUP, "fedkrso", "warning", "not installed as a package", "pip install fedkrso")
    return [_python(sys.version_info[:3]), own, *packages(needed, training=around.node_file is not None)]


def _python(found: tuple[int, ...]) -> Check:
    right = (3, 10) <= found[:2] <= (3, 12)
    return Check(
        _GROUP,
        "Python",
        "ok" if right else "error",
        ".".join(map(str, found)),
        "" if right else "use Python 3.10 to 3.12",
    )


def packages(needed: Sequence[str], *, training: bool) -> Iterator[Check]:
    """Requirements of the agent, and of training.

    Args:
        needed: As a wheel's metadata has them.
        training: Whether this machine is to train; else it may well be without.
    """
    missing = []
    for line in needed:
        name, least, extra = _requirement(line)
        if extra not in ("", "train") or _not_for_this_python(line):
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            if extra == "train":
                missing.append(name)
            else:
                yield Check(_GROUP, name, "error", "not installed", "pip install fedkrso")
            continue
        old = _numbers(found) < _numbers(least)
        remedy = f"pip install --upgrade '{name}>={least}'" if old else ""
        yield Check(_GROUP, name, "error" if old else "ok", f"{found}, older than {least}" if old else found, remedy)
    for name in _OPTIONAL:
        if name in missing:
            missing.remove(name)
            yield Check(_GROUP, name, "ok", "not installed; training does not need it")
    if missing:
        what = f"an agent alone, which cannot train: {', '.join(missing)} not installed"
        yield Check(_GROUP, "training", "error" if training else "warning", what, _TRAIN)


def _requirement(line: str) -> tuple[str, str, str]:
    """Name, lower bound and extra: `torch>=2.4; extra == "train"`."""
    name = re.match(r"[A-Za-z0-9._-]+", line)
    least = re.search(r">=\s*([0-9][0-9.]*)", line.split(";")[0])
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
    return name.group(0) if name else line, least.group(1) if least else "0", extra.group(1) if extra else ""


def _not_for_this_python(line: str) -> bool:
    found = re.search(r"python_version\s*<\s*['\"]([0-9.]+)['\"]", line)
    return found is not None and _numbers(found.group(1)) <= sys.version_info[:2]


def _numbers(text: str) -> tuple[int, ...]:
    """`2.5.0a0+872d972e41.nv24.08` -> (2, 5, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found.group(0).split("."))) if found else ()
