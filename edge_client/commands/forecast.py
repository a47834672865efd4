# SPDX-License-Identifier: Apache-2.0
"""`fedkrso profile`: does this model train within that budget, and where would the memory go; before weights are
downloaded.

Full fine-tuning, LoRA on int8 weights and FedKRSO side by side, each with the best plan that fits the budget or, where
none does, its smallest; of a model that writes, answers by the length of their context beside them. This module is
torch-free: values in, a table or a page out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_client.memory.planner import Bounds, Calibration, described, fit, plans
from edge_client.process.measuring import AnswerMeasurement, Measurement
from fedcore.device.memoryplan import COMPONENT_NAMES, Footprint, MemoryComponents, MemoryPlan
from fedcore.errors import BudgetError

__all__ = ["Answer", "Column", "Profile", "answer", "as_html", "as_text", "column"]

_BESIDE = "agent, server"
# What is always there, what comes and goes: dark to light within two families of colour.
_COLOURS = {
    "runtime_bytes": "#5c6b78",
    "weights_bytes": "#123f63",
    "embeddings_bytes": "#1b6ca8",
    "subspaces_bytes": "#6ba6d3",
    "optimiser_bytes": "#7d4f9e",
    "buffer_bytes": "#b79bd0",
    "cache_bytes": "#2a9d5c",
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


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker that answers would need, with a full context of so many tokens, and whether it fits."""

    context_tokens: int
    """Of question and answer together."""
    fits: bool
    components: MemoryComponents
    shortfall_bytes: int
    """What is missing; 0 where it fits."""


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
    answers: tuple[Answer, ...] = ()
    """Of a model that writes, shortest context first."""
    longest_context: int = 0
    """How long a context fits the budget, in tokens; 0 where none does."""
    server_bytes: int = 0
    """Beside the agent, while answering."""
    measured: Measurement | None = None
    measured_answer: AnswerMeasurement | None = None


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


def answer(context_tokens: int, components: MemoryComponents, room_bytes: int) -> Answer:
    """Whether a context fits the room of the worker that answers."""
    missing = max(0, components.total_bytes - room_bytes)
    return Answer(context_tokens=context_tokens, fits=not missing, components=components, shortfall_bytes=missing)


@dataclass(frozen=True)
class _Shown:
    """A column of the table, whatever it is of."""

    name: str
    components: MemoryComponents
    beside_bytes: int
    fits: bool
    verdict: str

    @property
    def total_bytes(self) -> int:
        return self.components.total_bytes + self.beside_bytes


def as_text(profile: Profile) -> str:
    """The answer as a table for a terminal."""
    columns = _columns(profile)
    rows = [["MiB", *(c.name for c in columns)], *([label, *cells] for label, cells in _rows(columns))]
    rows.append(["head room", *(_mb(profile.budget_bytes - c.total_bytes) for c in columns)])
    rows.append(["fits", *("yes" if c.fits else "no" for c in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_title(profile), ""]
    for row in rows:
        lines.append(
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
        )
    lines.append("")
    for c in columns[: len(profile.columns)]:
        lines.append(f"{c.name}: {'fits' if c.fits else 'does not fit'}: {c.verdict}")
    lines += _said_of_answers(profile)
    for line in _measured(profile):
        lines += ["", line]
    return "\n".join(lines)


def as_html(profile: Profile) -> str:
    """The same as a page of its own, with a stacked bar for each column and the budget as a line."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("edge_client.commands"), autoescape=select_autoescape())
    columns = _columns(profile)
    widest = max([*(c.total_bytes for c in columns), profile.budget_bytes]) * 1.04
    bars = [
        {
            "method": c.name,
            "fits": c.fits,
            "verdict": c.verdict,
            "total": _mb(c.total_bytes),
            "pieces": _pieces(c, widest),
        }
        for c in columns
    ]
    legend = [(_BESIDE, "#2a9d8f"), *((label, _COLOURS[name]) for name, label in COMPONENT_NAMES.items())]
    return environment.get_template("profile.html").render(
        title=_title(profile),
        profile=profile,
        bars=bars,
        rows=_rows(columns),
        legend=legend,
        budget=_mb(profile.budget_bytes),
        budget_at=100 * profile.budget_bytes / widest,
        said=[*_said_of_answers(profile), *_measured(profile)],
    )


def _columns(profile: Profile) -> list[_Shown]:
    """Training, then answers."""
    found = []
    for c in profile.columns:
        verdict = c.plan if c.fits else f"{c.shortfall_bytes / 2**20:,.0f} MiB short with {c.plan}"
        found.append(_Shown(c.method, c.components, profile.agent_bytes, c.fits, verdict))
    beside = profile.agent_bytes + profile.server_bytes
    for a in profile.answers:
        length = f"{a.context_tokens:,} tokens"
        verdict = f"{length} of question and answer"
        if not a.fits:
            verdict = f"{a.shortfall_bytes / 2**20:,.0f} MiB short with {length}"
        found.append(_Shown(f"answer, {length}", a.components, beside, a.fits, verdict))
    return found


def _rows(columns: Sequence[_Shown]) -> list[tuple[str, list[str]]]:
    """Every component that somebody has, what is beside the worker, and the peak."""
    rows = []
    for name, label in COMPONENT_NAMES.items():
        values = [getattr(c.components, name) for c in columns]
        if any(values):
            rows.append((label, [_mb(value) for value in values]))
    rows.append((_BESIDE, [_mb(c.beside_bytes) for c in columns]))
    return [*rows, ("peak", [_mb(c.total_bytes) for c in columns])]


def _said_of_answers(profile: Profile) -> list[str]:
    if not profile.answers:
        return []
    if not profile.longest_context:
        return [f"answers: do not fit: {profile.answers[0].shortfall_bytes / 2**20:,.0f} MiB short"]
    return [f"answers: fit with up to {profile.longest_context:,} tokens of question and answer together"]


def _pieces(column: _Shown, widest: float) -> Sequence[dict[str, Any]]:
    found = [
        (_BESIDE, column.beside_bytes, "#2a9d8f"),
        *((label, getattr(column.components, name), _COLOURS[name]) for name, label in COMPONENT_NAMES.items()),
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


def _measured(profile: Profile) -> Iterator[str]:
    found, answered = profile.measured, profile.measured_answer
    if found is not None:
        yield (
            f"measured here with the plan for FedKRSO: worker's peak {_mb(found.peak_bytes)} MiB, "
            f"predicted {_mb(found.traced.total_bytes)} MiB ({found.error:+.1%}), "
            f"calibrated {_mb(found.predicted.total_bytes)} MiB; {found.step_seconds:.2f} s a step"
        )
    if answered is not None:
        yield (
            f"measured here with an answer: worker's peak {_mb(answered.peak_bytes)} MiB, "
            f"predicted {_mb(answered.predicted.total_bytes)} MiB ({answered.error:+.1%}), "
            f"planned when loaded {_mb(answered.planned.total_bytes)} MiB"
        )


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:,.0f}"
