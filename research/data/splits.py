# SPDX-License-Identifier: Apache-2.0
"""The experiment's splits, as its command line writes them: a task knows its own groups."""

from __future__ import annotations

from fedcore.data import splits
from fedcore.data.splits import Split
from fedcore.errors import ConfigError

__all__ = ["LEAST_EXAMPLES", "parse_split"]

LEAST_EXAMPLES = 8
"""Of a client in the experiment."""


def parse_split(text: str) -> Split:
    """`iid`, `natural`, `labels` or `dirichlet:0.5`.

    Raises:
        ConfigError: Something else.

    Example:
        >>> str(parse_split("natural"))
        'natural'
    """
    if text == "natural":
        return Split("natural")
    if text == "labels":
        return Split("labels")
    if text.startswith("by:"):
        raise ConfigError(
            f"{text!r} is not a split", place="--split", remedy="write iid, dirichlet:0.5, labels or natural"
        )
    return splits.parse_split(text)
