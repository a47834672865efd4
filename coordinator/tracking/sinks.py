# SPDX-License-Identifier: Apache-2.0
"""What a sink of a run's numbers is, and which there are. One is a file of its own and a line of `SINKS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fedcore.errors import ConfigError

__all__ = ["SINKS", "Sink", "Tracked", "open_sink"]


@dataclass(frozen=True)
class Tracked:
    """The run whose numbers come.

    Attributes:
        run: Its name.
        started_at: Unix seconds.
        settings: What its job says, in words.
    """

    run: str
    started_at: float
    settings: Mapping[str, str]


class Sink(Protocol):
    """Takes a run's numbers. All of them may come again when the sink is opened again: what is there already must not
    count twice."""

    def put(self, server_round: int, at: float, values: Mapping[str, float]) -> None:
        """Take the numbers of a round; some of a round may come later than others.

        Args:
            server_round: The round.
            at: When it closed, Unix seconds.
            values: By name; none is missing in one call and there in a later one unless it was measured in between.
        """
        ...

    def close(self, *, ended: bool) -> None:
        """Write out what is kept.

        Args:
            ended: Whether the run has ended, and not only whoever follows it.
        """
        ...


SINKS: Final = {
    "tensorboard": "coordinator.tracking.tensorboard:TensorBoard",
    "mlflow": "coordinator.tracking.mlflow:MLflow",
}
"""By name, the class: made of (target, run)."""


def open_sink(text: str, run: Tracked) -> Sink:
    """The sink that somebody has named.

    Args:
        text: `NAME:TARGET`; what a target is says each.
        run: Whose numbers will come.

    Raises:
        ConfigError: There is none of this name, its package is not installed, or the target cannot be used.

    Example:
        >>> open_sink("spreadsheet:x", Tracked("voice", 0.0, {}))
        Traceback (most recent call last):
            ...
        fedcore.errors.ConfigError: --to: 'spreadsheet' is no sink (there are: tensorboard, mlflow)
    """
    name, colon, target = text.partition(":")
    if name not in SINKS or not colon or not target:
        there = f"there are: {', '.join(SINKS)}"
        words = f"{text!r} names no target" if name in SINKS else f"{name!r} is no sink"
        raise ConfigError(words, place="--to", remedy=there if name not in SINKS else f"write {name}:TARGET")
    module, _, kind = SINKS[name].partition(":")
    try:
        made: Sink = getattr(importlib.import_module(module), kind)(target, run)
    except ImportError as error:
        raise ConfigError(
            f"{name} is not installed: {error}", place="--to", remedy=f"pip install 'fedkrso[{name}]'"
        ) from None
    return made
