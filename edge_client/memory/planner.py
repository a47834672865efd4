# SPDX-License-Identifier: Apache-2.0
"""The memory planner: from a model's footprint, the job's bounds and the room there is, to the choices that fit.

Pure functions. What is learned comes first: the job's length and rank are given up only when nothing else fits; then
weights stay in memory rather than on disk; then the plan that is estimated fastest wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import msgspec

from edge_client.memory.answering import MARGIN, measuring_bytes, no_answer_fits
from fedcore.device.memoryplan import Allocator, Footprint, MemoryComponents, MemoryPlan
from fedcore.errors import BudgetError
from fedcore.worker.messages import Measured

__all__ = [
    "Bounds",
    "Calibration",
    "allocator_share",
    "calibrated",
    "described",
    "fit",
    "halvings",
    "plan_steps",
    "plans",
    "predict",
    "smaller",
]

# Checkpointing computes the forward pass again: one third more products. Gates alone took 5 to 7 % more time
# (docs/benchmarks.md).
_CHECKPOINTING_TIME, _GATES_TIME = 4 / 3, 1.06
# Every pass dequantises all weights, forward and backward: as much time as this many tokens take.
_PASS_TOKENS = 16
# What is saved where weights are there as they are used: at 316 tokens 7 % were measured, at 85 tokens 13 %.
_DEQUANTISED_TIME = 0.92
_BLOCK_ROWS = (256, 64)
# glibc's default thresholds keep freed memory; measured, up to 2.2 times what tensors need (docs/benchmarks.md).
_DEFAULT_ALLOCATOR_SHARE = 1.5


@dataclass(frozen=True)
class Bounds:
    """What the job and the node's owner leave open.

    `micro_batch_size`, `checkpointing`, `mapped` and `dequantised` are fixed where they are not None.
    """

    batch_size: int
    rank: int
    min_rank: int
    min_length: int = 0
    micro_batch_size: int | None = None
    checkpointing: bool | None = None
    mapped: bool | None = None
    dequantised: bool | None = None
    allocator: Allocator | None = "tuned"
    fixed_length: int | None = None
    """The length that the loaded data is cut to."""


class Calibration(msgspec.Struct, frozen=True):
    """What a process takes beyond live tensors: a constant, and a share of what comes and goes.

    Measured with two tiny steps once a model is loaded; before that, as on the machines of docs/benchmarks.md.
    """

    slack_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**50)] = 10_000_000
    share: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.02


def predict(footprint: Footprint, plan: MemoryPlan, calibration: Calibration, *, rank: int) -> MemoryComponents:
    """The worker's peak with a plan, by component. The footprint must know the length.

    Args:
        footprint: Of the model.
        plan: The choices; its `components` are not looked at.
        calibration: Measured or estimated.
        rank: The round's rank, which `plan.rank` 0 stands for.
    """
    length = plan.length or footprint.longest
    activations, logits, working = _live(footprint, plan, length)
    share = allocator_share(plan, calibration)
    weights, embeddings = footprint.weights_bytes, footprint.embeddings_bytes
    if plan.dequantised:
        weights += footprint.dequantised_bytes
    if plan.mapped:
        weights, embeddings = footprint.largest_layer_bytes, embeddings - footprint.mappable_embeddings_bytes
    return MemoryComponents(
        runtime_bytes=footprint.runtime_bytes,
        weights_bytes=weights,
        embeddings_bytes=embeddings,
        subspaces_bytes=footprint.subspaces_bytes,
        optimiser_bytes=_trained(footprint, plan, rank) + footprint.trained_bytes,
        buffer_bytes=footprint.row_bytes * plan.block_rows + footprint.signs_bytes,
        activations_bytes=activations,
        logits_bytes=logits,
        working_bytes=working,
        slack_bytes=calibration.slack_bytes + int(share * (activations + logits + working)),
    )


def _trained(footprint: Footprint, plan: MemoryPlan, rank: int) -> int:
    """What tiny steps without an optimiser do not have of what trains."""
    return footprint.rank_bytes * (plan.rank or rank) + footprint.tensors_bytes + footprint.moments_bytes


def _live(footprint: Footprint, plan: MemoryPlan, length: int) -> tuple[int, int, int]:
    """Activations, logits and working bytes of a pass: as traced, or on the line through the two nearest sizes that
    were."""
    wanted = plan.checkpointing, plan.recompute_gates, length
    traced = {
        p.micro_batch_size: p for p in footprint.points if (p.checkpointing, p.recompute_gates, p.length) == wanted
    }
    size = plan.micro_batch_size
    low, high = (found := sorted(sorted(traced, key=lambda known: abs(known - size))[:2]))[0], found[-1]
    if size in traced:
        low = high = size
    near, far, share = traced[low], traced[high], (size - low) / max(1, high - low)

    def between(a: int, b: int) -> int:
        return max(0, round(a + share * (b - a)))

    return (
        between(near.activations_bytes, far.activations_bytes),
        between(near.logits_bytes, far.logits_bytes),
        between(near.working_bytes, far.working_bytes),
    )


def plans(footprint: Footprint, bounds: Bounds, calibration: Calibration) -> list[MemoryPlan]:
    """All plans within the bounds, the best first: what is learned, then resident weights, then time."""
    return list(_plans(footprint, bounds, calibration))


def _plans(footprint: Footprint, bounds: Bounds, calibration: Calibration) -> Iterator[MemoryPlan]:
    """The same, each predicted when it is asked for: of a footprint that is traced meanwhile no more is."""
    found = [
        (_losses(footprint, bounds, plan), plan.mapped, _time(footprint, plan), plan)
        for plan in _choices(footprint, bounds)
        if plan.micro_batch_size <= bounds.batch_size
    ]
    found.sort(key=lambda entry: entry[:3])
    for *_, plan in found:
        yield _repredicted(footprint, bounds, plan, calibration)


def fit(footprint: Footprint, bounds: Bounds, room_bytes: int, calibration: Calibration) -> MemoryPlan:
    """The best plan whose predicted peak leaves the margin free.

    Args:
        footprint: Of the model.
        bounds: What may be chosen.
        room_bytes: For the worker alone.
        calibration: Measured or estimated.

    Raises:
        BudgetError: Not even the smallest plan fits; the message has the numbers.
    """
    possible, room = list[MemoryPlan](), room_bytes * (1 - MARGIN)
    for plan in _plans(footprint, bounds, calibration):
        measuring = measuring_bytes(footprint, plan, allocator_share(plan, calibration))
        if max(plan.components.total_bytes, measuring) <= room:
            return plan
        possible.append(plan)
    least = min(possible, key=lambda plan: plan.components.total_bytes)
    if least.components.total_bytes <= room:
        peaks = [measuring_bytes(footprint, plan, allocator_share(plan, calibration)) for plan in possible]
        raise no_answer_fits(peaks, room_bytes)
    needed = least.components.total_bytes / (1 - MARGIN)
    raise BudgetError(
        f"training needs {needed / 2**20:,.0f} MiB with the smallest plan ({described(least, bounds)}); "
        f"the worker may have {room_bytes / 2**20:,.0f} MiB: {(needed - room_bytes) / 2**20:,.0f} MiB short",
        place="memory_budget",
        remedy=_remedy(footprint, least, needed - room_bytes),
    )


def allocator_share(plan: MemoryPlan, calibration: Calibration) -> float:
    """Of what comes and goes, what the allocator takes beyond it."""
    return calibration.share + (_DEFAULT_ALLOCATOR_SHARE if plan.allocator == "default" else 0.0)


def smaller(footprint: Footprint, bounds: Bounds, now: MemoryPlan, calibration: Calibration) -> MemoryPlan | None:
    """The next plan with a lower peak than `now` that a running worker can take at once, or None.

    Rank, length and the place of the weights stay: they cannot change within an interval. Halving the micro-batch comes
        before checkpointing, checkpointing before shorter blocks, as far as each of them saves anything; dequantised
        weights go where smaller micro-batches with them would take longer than larger ones without."""
    if now.allocator == "default":
        # What the allocator keeps is the largest part, and giving it back costs the least.
        return _repredicted(footprint, bounds, msgspec.structs.replace(now, allocator="tuned"), calibration)
    fixed = [
        plan
        for plan in plans(footprint, bounds, calibration)
        if (plan.rank, plan.length, plan.mapped, plan.allocator) == (now.rank, now.length, now.mapped, now.allocator)
        and plan.micro_batch_size <= now.micro_batch_size
        and (plan.checkpointing, plan.recompute_gates) >= (now.checkpointing, now.recompute_gates)
        and plan.block_rows <= now.block_rows
        and plan.dequantised <= now.dequantised
    ]
    # A step down must be worth it: two percent of what comes and goes.
    present = predict(footprint, now, calibration, rank=bounds.rank).total_bytes
    lower = [plan for plan in fixed if plan.components.total_bytes < present - 1_000_000]
    return lower[0] if lower else None


def plan_steps(
    footprint: Footprint, bounds: Bounds, top: MemoryPlan, calibration: Calibration
) -> tuple[MemoryPlan, ...]:
    """`top` and every smaller plan below it, in order."""
    found = [top]
    while (lower := smaller(footprint, bounds, found[-1], calibration)) is not None:
        found.append(lower)
    return tuple(found)


def calibrated(
    footprint: Footprint, loaded: MemoryPlan, measured: Sequence[Measured], *, rank: int, before: Calibration
) -> Calibration:
    """What a process takes beyond the tensors that were foreseen, from tiny steps.

    Args:
        footprint: Of the model.
        loaded: How it was loaded.
        measured: Tiny steps without checkpointing.
        rank: The round's rank.
        before: The calibration so far; its share stays, since tiny steps say little about large ones.
    """
    if not measured:
        return before
    slacks = []
    for step in measured:
        tiny = msgspec.structs.replace(
            loaded, micro_batch_size=step.micro_batch_size, length=step.length, checkpointing=False
        )
        components = predict(footprint, tiny, Calibration(0, before.share), rank=rank)
        # Tiny steps run without an optimiser and, in a first round, without accumulators.
        slacks.append(step.peak_bytes - (components.total_bytes - _trained(footprint, tiny, rank)))
    return Calibration(max(0, *slacks), before.share)


def described(plan: MemoryPlan, bounds: Bounds) -> str:
    """A plan in words.

    Example:
        >>> described(MemoryPlan(micro_batch_size=4, checkpointing=True), Bounds(batch_size=16, rank=8, min_rank=8))
        'micro-batch 4 of 16, checkpointing, rank 8'
    """
    words = [f"micro-batch {plan.micro_batch_size} of {bounds.batch_size}"]
    words += ["checkpointing"] * plan.checkpointing
    words += ["gates recomputed"] * plan.recompute_gates
    words += ["weights on disk"] * plan.mapped
    words += ["weights dequantised"] * plan.dequantised
    words += [f"blocks of {plan.block_rows} rows"] * (plan.block_rows != _BLOCK_ROWS[0])
    words += [f"rank {plan.rank or bounds.rank}"] * bool(plan.rank or bounds.rank)
    words += [f"length {plan.length}"] * bool(plan.length)
    words += ["default allocator"] * (plan.allocator == "default")
    return ", ".join(words)


def _repredicted(footprint: Footprint, bounds: Bounds, plan: MemoryPlan, calibration: Calibration) -> MemoryPlan:
    return msgspec.structs.replace(plan, components=predict(footprint, plan, calibration, rank=bounds.rank))


def _choices(footprint: Footprint, bounds: Bounds) -> Iterator[MemoryPlan]:
    sizes = [bounds.micro_batch_size] if bounds.micro_batch_size else list(halvings(bounds.batch_size, 1))
    ranks = [0, *(r for r in halvings(bounds.rank, bounds.min_rank) if r < bounds.rank)]
    known = {point.length for point in footprint.points if point.length < footprint.longest}
    shorter = sorted(length for length in known if 0 < bounds.min_length <= length)
    lengths = [0, *shorter] if bounds.fixed_length is None else [bounds.fixed_length]
    ways = sorted(
        {
            (p.checkpointing, p.recompute_gates)
            for p in footprint.points
            if bounds.checkpointing in (None, p.checkpointing)
        }
    )
    places, allocators = _places(footprint, bounds), _allocators(bounds)
    every = product(sizes, ways, places, ranks, lengths, _BLOCK_ROWS, allocators)
    for size, (checkpointing, gates), (mapped, dequantised), rank, length, block_rows, allocator in every:
        yield MemoryPlan(
            micro_batch_size=size,
            checkpointing=checkpointing,
            recompute_gates=gates,
            mapped=mapped,
            dequantised=dequantised,
            rank=rank,
            length=length,
            block_rows=block_rows,
            allocator=allocator,
        )


def _places(footprint: Footprint, bounds: Bounds) -> list[tuple[bool, bool]]:
    """Where weights may be: (on disk, also in floating point), never both."""
    possible = (False, True) if footprint.dequantised_bytes else (False,)
    return [
        (mapped, dequantised)
        for mapped in ((False, True) if bounds.mapped is None else (bounds.mapped,))
        for dequantised in possible
        if not (mapped and dequantised)
        and bounds.dequantised in (None, dequantised, *(() if any(possible) else (True,)))
    ]


def _allocators(bounds: Bounds) -> tuple[Allocator, ...]:
    return ("default", "tuned") if bounds.allocator is None else (bounds.allocator,)


def halvings(largest: int, least: int) -> Iterator[int]:
    """largest, half of it rounded up, ... down to `least`."""
    size = largest
    while size > least:
        yield size
        size = -(-size // 2)
    yield max(least, 1)


def _losses(footprint: Footprint, bounds: Bounds, plan: MemoryPlan) -> tuple[int, int]:
    """How much of what the job asks for is given up: tokens, then rank."""
    return footprint.longest - (plan.length or footprint.longest), bounds.rank - (plan.rank or bounds.rank)


def _time(footprint: Footprint, plan: MemoryPlan) -> float:
    tokens = plan.micro_batch_size * (plan.length or footprint.longest)
    blocks = _DEQUANTISED_TIME if plan.dequantised else 1.0
    blocks += 0.02 * (plan.block_rows != _BLOCK_ROWS[0])
    allocator = 1.0 if plan.allocator == "default" else 1.2
    again = _CHECKPOINTING_TIME if plan.checkpointing else _GATES_TIME if plan.recompute_gates else 1.0
    return again * (1 + _PASS_TOKENS / tokens) * blocks * allocator


def _remedy(footprint: Footprint, least: MemoryPlan, missing_bytes: float) -> str:
    more = f"raise memory_budget by {missing_bytes / 2**20:,.0f} MiB"
    if least.components.runtime_bytes > least.components.total_bytes - missing_bytes:
        return f"the libraries alone take {least.components.runtime_bytes / 2**20:,.0f} MiB; {more}"
    return f"{more}, lower task.max_length (now {footprint.longest} tokens) or take a smaller model"
