# SPDX-License-Identifier: Apache-2.0
"""`fedkrso profile`: does this model train within that budget, and where would the memory go; before weights are
downloaded.

Full fine-tuning, LoRA on int8 weights and FedKRSO side by side, each with the best plan that fits the budget or, where
none does, its smallest. This module is torch-free: values in, a table or a page out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edge_client.memory.planner import Bounds, Calibration, described, fit, plans
from edge_client.process.measuring import Measurement
from fedcore.device.memoryplan import COMPONENT_NAMES, Footprint, MemoryComponents, MemoryPlan
from fedcore.errors import BudgetError

__all__ = ["Column", "Profile", "as_html", "as_text", "column"]

# What is always there, what comes and goes: dark to light within two families of colour.
_COLOURS = {
    "runtime_bytes": "#5c6b78",
    "weights_bytes": "#123f63",
    "embeddings_bytes": "#1b6ca8",
    "subspaces_bytes": "#6ba6d3",
    "optimiser_bytes": "#7d4f9e",
    "buffer_bytes": "#b79bd0",
    "activations_bytes": "#d1495b",
    "logits_bytes": "#e9a23b",
    "working_bytes": "#f0c987",
    "slack_bytes": "#c9d2d9",
}


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """What one method would need, and whether it fits."""

    method: str
    fits: bool
    plan: str
    """The choices, in words."""
    components: MemoryComponents
    shortfall_bytes: int
    """What is missing; 0 where it fits."""
    memory: MemoryPlan


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What `fedkrso profile` has to say of a model and a budget."""

    model: str
    task: str
    budget_bytes: int
    device: str
    agent_bytes: int
    batch_size: int
    length: int
    rank: int
    columns: tuple[Column, ...]
    measured: Measurement | None = None


def column(method: str, footprint: Footprint, bounds: Bounds, room_bytes: int) -> Column:
    """A method's best plan within the room, or its smallest with what is missing."""
    calibration = Calibration()
    try:
        plan = fit(footprint, bounds, room_bytes, calibration)
        missing = 0
    except BudgetError:
        plan = min(plans(footprint, bounds, calibration), key=lambda p: p.components.total_bytes)
        missing = max(1, plan.components.total_bytes - room_bytes)
    return Column(
        method=method,
        fits=not missing,
        plan=described(plan, bounds),
        components=plan.components,
        shortfall_bytes=missing,
        memory=plan,
    )


def as_text(profile: Profile) -> str:
    """The answer as a table for a terminal."""
    rows = [["MiB", *(c.method for c in profile.columns)]]
    for name, label in COMPONENT_NAMES.items():
        values = [getattr(c.components, name) for c in profile.columns]
        if any(values):
            rows.append([label, *(_mb(value) for value in values)])
    rows.append(["agent", *(_mb(profile.agent_bytes) for _ in profile.columns)])
    totals = [c.components.total_bytes + profile.agent_bytes for c in profile.columns]
    rows.append(["peak", *(_mb(total) for total in totals)])
    rows.append(["head room", *(_mb(profile.budget_bytes - total) for total in totals)])
    rows.append(["fits", *("yes" if c.fits else "no" for c in profile.columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_title(profile), ""]
    for row in rows:
        lines.append(
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
        )
    lines.append("")
    for c in profile.columns:
        verdict = (
            f"fits: {c.plan}" if c.fits else f"does not fit: {c.shortfall_bytes / 2**20:,.0f} MiB short with {c.plan}"
        )
        lines.append(f"{c.method}: {verdict}")
    if profile.measured is not None:
        lines += ["", _measured(profile.measured)]
    return "\n".join(lines)


def as_html(profile: Profile) -> str:
    """The same as a page of its own, with a stacked bar for each method and the budget as a line."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("edge_client.commands"), autoescape=select_autoescape())
    totals = [c.components.total_bytes + profile.agent_bytes for c in profile.columns]
    widest = max([*totals, profile.budget_bytes]) * 1.04
    bars = [
        {
            "method": c.method,
            "fits": c.fits,
            "verdict": c.plan if c.fits else f"{c.shortfall_bytes / 2**20:,.0f} MiB short with {c.plan}",
            "total": _mb(total),
            "pieces": _pieces(c.components, profile.agent_bytes, widest),
        }
        for c, total in zip(profile.columns, totals, strict=True)
    ]
    rows = [
        (label, [_mb(getattr(c.components, name)) for c in profile.columns]) for name, label in COMPONENT_NAMES.items()
    ]
    legend = [("agent", "#2a9d8f"), *((label, _COLOURS[name]) for name, label in COMPONENT_NAMES.items())]
    return environment.get_template("profile.html").render(
        title=_title(profile),
        profile=profile,
        bars=bars,
        rows=[*rows, ("agent", [_mb(profile.agent_bytes)] * len(totals)), ("peak", [_mb(total) for total in totals])],
        legend=legend,
        budget=_mb(profile.budget_bytes),
        budget_at=100 * profile.budget_bytes / widest,
        measured=None if profile.measured is None else _measured(profile.measured),
    )


def _pieces(components: MemoryComponents, agent_bytes: int, widest: float) -> Sequence[dict[str, Any]]:
    found = [
        ("agent", agent_bytes, "#2a9d8f"),
        *((label, getattr(components, name), _COLOURS[name]) for name, label in COMPONENT_NAMES.items()),
    ]
    return [
        {"label": f"{label}: {_mb(size)} MiB", "width": 100 * size / widest, "colour": colour}
        for label, size, colour in found
        if size
    ]


def _title(profile: Profile) -> str:
    where = f" on {profile.device}" if profile.device else ""
    return (
        f"{profile.model}: {profile.task}, batch {profile.batch_size} x {profile.length} tokens, rank {profile.rank}, "
        f"budget {_mb(profile.budget_bytes)} MiB{where}"
    )


def _measured(found: Measurement) -> str:
    peak, predicted = _mb(found.peak_bytes), _mb(found.traced.total_bytes)
    return (
        f"measured here with the plan for FedKRSO: worker's peak {peak} MiB, "
        f"predicted {predicted} MiB ({found.error:+.1%}), calibrated {_mb(found.predicted.total_bytes)} MiB; "
        f"{found.step_seconds:.2f} s a step"
    )


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:,.0f}"
