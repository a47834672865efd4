# SPDX-License-Identifier: Apache-2.0
"""Which runs of a fleet a node's owner lets it take part in, and which its data and models can serve. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from fedcore.config.sections import DataSection
from fedcore.errors import ConfigError
from fedcore.registry import TASKS
from fedcore.wire.fleet import FleetRun

__all__ = ["RELEASE_FILE", "AcceptSection", "Offering", "why_not"]

RELEASE_FILE: Final = "fleet-release"
"""In a node's folder: the server's signed notice of the version that is to run here, as it came."""

_PROMISES: Final = {"": ("", "node", "example"), "node": ("node", "example"), "example": ("example",)}


class AcceptSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[accept]` of a fleet's node: all that is said here must hold. What privacy a run must promise says `privacy`,
    whether updates must be masked `trust.require_secure_aggregation`, as for every node."""

    runs: tuple[str, ...] = ("*",)
    """Names, with `*` and `?`."""
    tasks: tuple[str, ...] = ()
    """Kinds of task that the data is for; left out: each that its columns can serve."""
    methods: tuple[str, ...] = ("*",)
    """Methods, with `*` and `?`."""
    releases: bool = False
    """Whether the fleet's server may say which version of fedkrso runs here, by the wheel's hash: whoever leads the
    fleet then decides which program runs on this device. `fedkrso client upgrade --wanted` does it."""

    def __post_init__(self) -> None:
        for key in ("runs", "methods"):
            if not getattr(self, key):
                remedy = f'accept.{key} = ["*"] for all'
                raise ConfigError("this accepts nothing", place=f"accept.{key}", remedy=remedy)


class Offering(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has, and what its owner wants.

    Attributes:
        accept: The owner's rules.
        data: The node's own text.
        models: Names of the checkpoints that are there.
        privacy: What rounds must promise.
        masked: Whether updates must be masked.
    """

    accept: AcceptSection
    data: DataSection
    models: Mapping[str, str]
    privacy: str = ""
    masked: bool = False


def why_not(offering: Offering, run: FleetRun) -> str:
    """Why a node takes no part in a run, as far as its notice tells; empty where nothing is against it.

    Args:
        offering: The node's.
        run: The run.

    Example:
        >>> data = DataSection(source="reviews.csv")
        >>> accept = AcceptSection(runs=("reviews-*",))
        >>> offering = Offering(accept=accept, data=data, models={"minilm": "/models/minilm"})
        >>> run = FleetRun(run="reviews-2", submission="0" * 32, task="regression", method="fedkrso", model="minilm")
        >>> why_not(offering, run), why_not(offering, msgspec.structs.replace(run, run="voice"))
        ('', 'its owner accepts no runs but reviews-*')
    """
    accept = offering.accept
    if not any(fnmatchcase(run.run, pattern) for pattern in accept.runs):
        return f"its owner accepts no runs but {', '.join(accept.runs)}"
    if not any(fnmatchcase(run.method, pattern) for pattern in accept.methods):
        return f"its owner accepts no methods but {', '.join(accept.methods)}, and this is {run.method}"
    if accept.tasks and run.task not in accept.tasks:
        return f"its data is for {', '.join(accept.tasks)}, and this is {run.task!r}"
    if run.privacy not in _PROMISES[offering.privacy]:
        said = f"privacy.{run.privacy}" if run.privacy else "no privacy"
        return f"its rounds promise {said}, and this node wants privacy.{offering.privacy}"
    if offering.masked and not run.secure:
        return "its updates are not masked, and this node wants secure aggregation"
    return _columns(offering.data, run) or _model(offering.models, run)


def _columns(data: DataSection, run: FleetRun) -> str:
    try:
        task = TASKS.get(run.task)
    except ConfigError:
        return f"no task {run.task!r} is installed here"
    if task.pair and not data.text_pair:
        return f"{run.task} needs a second text, and data.text_pair names no column"
    if task.labelled and not data.label:
        return f"{run.task} needs labels, and data.label names no column"
    return ""


def _model(models: Mapping[str, str], run: FleetRun) -> str:
    return (
        "" if run.model in models else f"no model {run.model!r} is here; there is {', '.join(sorted(models)) or 'none'}"
    )
