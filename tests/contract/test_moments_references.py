# SPDX-License-Identifier: Apache-2.0
"""FedKRSO with Adam, for each choice of what becomes of the moments, against an independent reference: textbook Adam in
each subspace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import CPU, MOMENTS, TASK, Run, examples, values_of
from torch import Tensor, nn

from edge_client.worker.data.tasks import batches, summed_loss
from edge_client.worker.train.round import learning_rate_factor
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate, check_update
from fedcore.subspaces.projection import signs
from fedcore.subspaces.schedule import interval_order
from tests.contract.reference import Reference, near


def _adam(value: Tensor, gradient: Tensor, step: int, state: dict[str, Any], prior: float = 0.0) -> None:
    """Adam as its paper has it; `prior` gradients with a mean square of state["s"] ** 2 came before."""
    state["t"] = state.get("t", 0) + 1
    first = state["m"] = 0.9 * state.get("m", torch.zeros_like(value)) + 0.1 * gradient
    before = (1 - 0.999**prior) * state["s"] ** 2 if prior else torch.zeros_like(value)
    second = state["v"] = 0.999 * state.get("v", before) + 0.001 * gradient**2
    corrected = second / (1 - 0.999 ** (prior + state["t"]))
    value.data -= 1e-2 * learning_rate_factor(step, 8) * first / (1 - 0.9 ** state["t"]) / (corrected.sqrt() + 1e-8)
    state["root"] = corrected.sqrt()


def _filled(roots: Tensor, mine: slice) -> Tensor:
    """A subspace's roots; each that is not known as the mean of the row's known ones: here, or where there is none, in
    all subspaces."""
    out = roots[:, mine].clone()
    for row, values in enumerate(out):
        known = values[values > 0] if bool((values > 0).any()) else roots[row][roots[row] > 0]
        values[values == 0] = known.mean() if len(known) else 0.0
    return out


def _subspaces(run: Run, moments: str, known: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A round of FedKRSO on an ordinary model: accumulators (m, K r) and roots of second moments; `known` are the roots
    of all before."""
    plan, replica = run.plan(1), run.replica("reference")
    reference, training = Reference(run, replica), plan.training
    seeds, rank, stream = training.seeds, training.rank, batches(examples(0), 4, 5, 1, "a")
    sums = {layer.name: torch.zeros(layer.rows, 3 * rank) for layer in run.schema.layers}
    roots = {name: torch.zeros_like(value) for name, value in sums.items()}
    if moments == "averaged":
        roots |= {name: value.clone() for name, value in known.items()}
    states: dict[tuple[str, int], dict[str, Any]] = {}
    # Mean squares of each interval's rows, one interval below the other.
    rows = {layer.name: torch.zeros(0, layer.rows) for layer in run.schema.layers}
    before: int | None = None
    for interval, k in enumerate(interval_order("cycle", 5, 1, 3, 4, "a")):
        projections, factors, mine = {}, {}, slice(k * rank, (k + 1) * rank)
        for layer in run.schema.layers:
            all_of_them = [
                torch.from_numpy(signs(seed, layer.name, rank, layer.columns)).float() / rank**0.5 for seed in seeds
            ]
            projections[layer.name], factor = all_of_them[k], torch.zeros(layer.rows, rank, requires_grad=True)
            factors[layer.name], linear = factor, reference.model.get_submodule(layer.name)
            linear.forward = lambda x, w=linear.weight, b=factor, p=all_of_them[k]: nn.functional.linear(x, w + b @ p)
            if moments == "rows":
                # The published roots; where there are none yet the last interval's, or none.
                own = rows[layer.name][-1:].sqrt() if len(rows[layer.name]) else torch.zeros(1, layer.rows)
                row = _filled(known[layer.name], slice(0, None)) if known else own
                states[layer.name, k] = {"s": row.T.expand(-1, rank)}
            elif moments != "carried" or before is None:
                states[layer.name, k] = {"s": _filled(roots[layer.name], mine)}
            elif (layer.name, k) not in states:
                old = states[layer.name, before]
                moved = old["m"] @ all_of_them[before] @ all_of_them[k].T * (rank / layer.columns)
                states[layer.name, k] = {"t": old["t"], "m": moved, "v": old["v"]}
        for step in (2 * interval, 2 * interval + 1):
            batch = next(stream)
            (summed_loss(reference.built, batch, TASK, 0, CPU) / sum(e.weight for e in batch)).backward()
            for name, factor in factors.items():
                state = states[name, k]
                assert factor.grad is not None
                prior = 2.0 if moments in ("averaged", "rows") and bool(state["s"].any()) else 0.0
                _adam(factor, factor.grad, step, state, prior)
                factor.grad = None
        for name, factor in factors.items():
            sums[name][:, mine] += factor.detach()
            root = states[name, k]["root"]
            if moments == "rows":
                rows[name] = torch.cat([rows[name], root.square().mean(dim=1)[None]])
            else:
                roots[name][:, mine] = root
            reference.weights[name].data += (factor @ projections[name]).detach()
        before = k
    if moments == "rows":
        roots = {name: found.mean(dim=0, keepdim=True).sqrt() for name, found in rows.items()}
    return sums, roots


@pytest.mark.parametrize(
    ("moments", "later"), [*((name, True) for name in MOMENTS), ("rows", False)], ids=[*MOMENTS, "rows, first round"]
)
def test_fedkrso_equals_its_reference_for_each_choice_of_moments(
    moments: Any, later: bool, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    # Four intervals in three subspaces: one comes back.
    settings = FedKRSOSettings(
        rank=4,
        num_seeds=3,
        steps=8,
        interval_steps=2,
        batch_size=4,
        learning_rate=1e-2,
        bits=16,
        moments=moments,
        projection="signs",
    )
    run = Run(settings, make_llama(), tmp_path)
    known: dict[str, Tensor] = {}
    if moments in ("averaged", "rows") and later:
        # As some round before left them: each row's in its own order of magnitude, one column and one subspace that
        # nobody has trained; or one row.
        for layer in run.schema.layers:
            chance = torch.Generator().manual_seed(len(known))
            sizes = torch.rand(layer.rows, 1, generator=chance) * 1e-2
            root = torch.rand(layer.rows, 12, generator=chance) * sizes + 2.0**-20
            root[:, 5] = root[:, 8:] = 0
            if moments == "rows":
                root = root[:, :1].T.clone()
                root[:, 3] = 0
            scaled = np.rint(np.ldexp(root.numpy().astype(np.float64), 32))
            run.state.sums[f"{layer.name}/second"] = scaled.astype(np.int64)
            known[layer.name] = root
        run.published[0] = run.model.published = run.state.publish()
        known = {
            layer.name: torch.from_numpy(run.published[0].entries[f"{layer.name}/second"].values())
            for layer in run.schema.layers
        }
    replica = run.replica("a")
    replica.state = run.published[0]
    replica.state.write(run.own / "a" / "state.bin")
    replica.restore()
    found = values_of(run.train("a", replica, 0).path)
    sums, roots = _subspaces(run, moments, known)
    for layer in run.schema.layers:
        assert near(found.pop(layer.name), sums[layer.name].numpy())
        if moments in ("averaged", "rows"):
            change = roots[layer.name] - known.get(layer.name, torch.zeros(1))
            assert near(found.pop(f"{layer.name}/second"), change.numpy())
    assert not found


def test_a_mean_of_second_moments_is_over_those_who_know(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    # Two of three subspaces a round, each node's own draw; one node trains half of the rank.
    settings = FedKRSOSettings(
        rank=4,
        min_rank=2,
        num_seeds=3,
        order="uniform",
        steps=4,
        interval_steps=2,
        batch_size=4,
        learning_rate=1e-2,
        moments="averaged",
    )
    run = Run(settings, make_llama(), tmp_path)
    updates, weights, totals = [], np.zeros(12), np.zeros((run.schema.layers[0].rows, 12))
    for number, name in enumerate("abcd"):
        plan, path, rank = run.plan(1), run.own / f"{name}.bin", 2 if name == "b" else 4
        memory = MemoryPlan(micro_batch_size=4, rank=rank)
        run.trainer(name, run.replica(name), examples(number))[0].train(plan, (memory,), path)
        header = check_update(path, plan, "r", name).header
        updates.append(WeightedUpdate(path, header, header.examples))
        columns = [4 * k + row for k in header.subspaces for row in range(rank)]
        weights[columns] += header.examples
        totals[:, columns] += header.examples * values_of(path)[f"{run.schema.layers[0].name}/second"].astype(
            np.float64
        )
    assert len({update.header.subspaces for update in updates}) > 1 and (weights > 0).all() and len(set(weights)) > 2
    run.close(1, updates)
    found = run.published[1].entries[f"{run.schema.layers[0].name}/second"].values()
    assert np.allclose(found, totals / weights, rtol=0, atol=found.max() * 2.0**-14) and (found.max(axis=0) > 0).all()
    other = run.half.aggregate(ExactState.zero(run.plan(1).training, run.schema), run.plan(1), updates[::-1])
    assert other.publish().digest() == run.published[1].digest(), "the order in which they came changes nothing"
