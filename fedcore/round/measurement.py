# SPDX-License-Identifier: Apache-2.0
"""What a node measures of a published state on rows of its own, as sums: the numbers travel, the rows never do.

Values are 64-bit integers in units of 2^-32, so that the sum over nodes is the same in any order. A node adds its own
examples up likewise: a value is rounded once, then everything is integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fedcore.errors import UpdateRefused
from fedcore.fields.checked import Positive, RoundNumber

__all__ = [
    "ACCURACY",
    "DEFAULT_NEW_TOKENS",
    "LOSS",
    "UNIT",
    "Measurement",
    "NodeEvaluation",
    "Sum",
    "check_measurement",
    "summed",
]

UNIT: Final = 2**32
"""Values are kept in units of 1 / UNIT."""
LOSS: Final = "loss"
ACCURACY: Final = "accuracy"
DEFAULT_NEW_TOKENS: Final = 128
"""Of an answer that is measured."""
_MOST_PER_EXAMPLE: Final = 2**20
# A value of one example counts as at most that: a model that has diverged gives infinity, and sums stay sums.

_MetricName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")]


class NodeEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan asks its participants to measure before they train: the state that the round starts from."""

    due: bool = True
    """Whether it is measured in this round; what is held out stays held out in every round."""
    share: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """Part of a node's rows that it holds out, where its file names no held-out rows."""
    share_seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """Decides which rows those are, together with the rows themselves."""
    rows: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """At most so many rows are measured, the same in every round; 0 for all."""
    metrics: Annotated[tuple[_MetricName, ...], Meta(max_length=32)] = ()
    """What is measured beside accuracy and loss: the task's own metrics and registered ones. Never a function's place:
    a plan does not choose what a node runs."""
    max_new_tokens: Annotated[int, Meta(ge=1, le=65_536)] = DEFAULT_NEW_TOKENS
    """Of an answer, where a metric compares texts."""


class Sum(msgspec.Struct, frozen=True, array_like=True):
    """Values of many examples, added up.

    Example:
        >>> Sum(3 * UNIT, 4).mean
        0.75
    """

    total: Annotated[int, Meta(ge=-(2**62), le=2**62)]
    """In units of 2^-32."""
    count: Positive
    """What the mean divides by: rows, or tokens."""

    @property
    def mean(self) -> float:
        """Rounded once: an integer division, correct to the last bit."""
        return self.total / (self.count * UNIT)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """A node's sums of one published state."""

    version: RoundNumber
    """Of the state."""
    examples: Positive
    """Held-out rows that were measured."""
    sums: Annotated[dict[_MetricName, Sum], Meta(max_length=40)]
    """By what was measured: `loss`, `accuracy`, and the plan's metrics."""


def summed(values: Iterable[float], count: int) -> Sum:
    """Values of single examples as an exact sum: the same in any order.

    Args:
        values: Of each example; beyond 2^20 it counts as that, and so does what is not a number.
        count: What their mean divides by.

    Example:
        >>> summed([0.5, 0.1, 0.2], 3) == summed([0.2, 0.5, 0.1], 3)
        True
    """
    return Sum(sum(round(_bounded(value) * UNIT) for value in values), count)


def _bounded(value: float) -> float:
    return max(-_MOST_PER_EXAMPLE, min(value, _MOST_PER_EXAMPLE)) if value == value else _MOST_PER_EXAMPLE


def check_measurement(found: Measurement, asked: NodeEvaluation | None, version: int, node: str) -> None:
    """Check what a node says that it measured, against what its plan asked.

    Raises:
        UpdateRefused: Nothing was asked, or it is of another version, lacks a number, has one too many, or one that
            cannot be.
    """
    if asked is None or not asked.due:
        raise UpdateRefused("a measurement that the plan did not ask for", place=node)
    if found.version != version:
        raise UpdateRefused(f"measured version {found.version} where the plan has {version}", place=node)
    wanted = {LOSS, ACCURACY, *asked.metrics}
    if found.sums.keys() != wanted:
        raise UpdateRefused(f"measured {_names(found.sums)} where the plan has {_names(wanted)}", place=node)
    for name, one in found.sums.items():
        if abs(one.total) > one.count * _MOST_PER_EXAMPLE * UNIT:
            raise UpdateRefused(f"{name} of {one.mean:.3g} an example cannot be", place=node)
    accuracy, loss = found.sums[ACCURACY], found.sums[LOSS]
    if abs(accuracy.total) > accuracy.count * UNIT or loss.total < 0:
        raise UpdateRefused(f"accuracy {accuracy.mean:.3g} with loss {loss.mean:.3g} cannot be", place=node)


def _names(names: Iterable[str] | Mapping[str, Sum]) -> str:
    return ", ".join(sorted(names))
