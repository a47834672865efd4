# SPDX-License-Identifier: Apache-2.0
"""How plots look on pages that need nothing else: as SVG, in one style."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["COLOURS", "close_up", "figure", "svg"]

_AROUND: Final = 0.05
COLOURS: Final = ("#1b6ca8", "#d1495b", "#2a9d8f", "#e9a23b", "#6d597a", "#457b9d")


def figure() -> tuple[Any, Any]:
    """A small figure and its axes."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = made.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    return made, axes


def close_up(axes: Any, values: Sequence[float]) -> None:
    """Have the vertical axis end near the values, shares or correlations: what differs by a few hundredths would look
    the same on the whole of it."""
    least = min(values)
    axes.set_ylim(least - _AROUND if least < 0 else max(0.0, least - _AROUND), min(1.005, max(values) + _AROUND))


def svg(made: Any, title: str, alt: str) -> dict[str, str]:
    """A figure as a template takes it: its title, its words for whoever does not see it, its picture."""
    buffer = io.StringIO()
    # No date, so that equal runs give equal pages.
    made.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return {"title": title, "alt": alt, "svg": text[text.index("<svg") :]}
