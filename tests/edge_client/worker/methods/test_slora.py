# SPDX-License-Identifier: Apache-2.0
"""SLoRA: its two stages against textbook models, and the switch between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import WHOLE, Run, values_of
from torch import nn
from torch.nn import functional as F

from edge_client.worker.model.weights import FloatWeight, SparselyMovedWeight
from fedcore.methods.lora.slora import SLoRASettings
from fedcore.model.learned import layer_factors, layer_update
from fedcore.round.training import SparseTraining
from fedcore.subspaces.sparse import positions, scattered
from fedcore.weights.initial import initial_factor
from tests.contract.reference import Reference, near

SIZES: dict[str, Any] = {
    "steps": 8, "interval_steps": 2, "batch_size": 4, "bits": 16, "learning_rate": 1e-2, "rank": 4, "alpha": 8.0,
    "density": 0.1, "sparse_rounds": 1,
}  # fmt: skip


@pytest.mark.parametrize(("columns", "k"), [(384, 4), (10, 10), (7, 1), (100, 33)])
def test_a_rows_places_are_different_columns(columns: int, k: int) -> None:
    places = positions(3, "l", 130, columns, k)
    assert places.shape == (130, k) and places.min() >= 0 and places.max() < columns
    assert (np.diff(places, axis=1) > 0).all()
    # 64 rows are a stream: more rows leave the first ones as they are.
    assert (positions(3, "l", 70, columns, k) == places[:70]).all()
    if k < columns:
        assert (positions(3, "l", 130, columns, k) != positions(4, "l", 130, columns, k)).any()
    assert len(np.unique(places)) > min(columns, 130) / 2, "no column is left out"


def both_stages(folder: Path, own: Path) -> tuple[Run, dict[str, Any]]:
    """Two nodes through the first stage, at the second's beginning."""
    run = Run(SLoRASettings(**SIZES), folder, own)
    nodes = {name: run.replica(name) for name in ("a", "b")}
    run.close(1, [run.train(name, replica, i) for i, (name, replica) in enumerate(nodes.items())])
    for replica in nodes.values():
        run.adopt(replica, 1, whole=False)
    return run, nodes


def test_a_round_of_the_first_stage_equals_its_reference(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Full fine-tuning of which all but some numbers of each row stand still."""
    run = Run(SLoRASettings(**SIZES), make_llama(), tmp_path)
    replica, values = run.replica("a"), dict[str, nn.Parameter]()
    reference = Reference(run, replica)
    for layer in run.schema.layers:
        k = max(1, round(0.1 * layer.columns))
        places = torch.from_numpy(positions(5, layer.name, layer.rows, layer.columns, k)).long()
        values[f"{layer.name}/sparse"] = own = nn.Parameter(torch.zeros(layer.rows, k))
        linear = reference.model.get_submodule(layer.name)

        def forward(x: torch.Tensor, linear: Any = linear, places: Any = places, own: Any = own) -> torch.Tensor:
            return F.linear(x, linear.weight + torch.zeros_like(linear.weight).scatter(1, places, own))

        linear.forward = forward
    reference.train(run, run.plan(1), list(values.values()))
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == values.keys()
    for name, value in found.items():
        assert near(value, values[name].detach().numpy())


def test_the_switch_is_the_best_of_its_rank_and_the_base_stays(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(SLoRASettings(**SIZES), make_llama(), tmp_path)
    updates = [run.train(name, run.replica(name), i) for i, name in enumerate(("a", "b"))]
    sent, weights = [values_of(update.path) for update in updates], [update.weight for update in updates]
    run.close(1, updates)
    training = run.plan(2).training
    assert isinstance(training, SparseTraining) and (training.stage, training.phase) == ("factors", "")
    assert run.plan(1).training.phase == "sparse" and run.plan(2).base_digest == run.plan(1).base_digest
    for layer in run.schema.layers:
        name = f"{layer.name}/sparse"
        mean = np.average([own[name].astype(np.float64) for own in sent], axis=0, weights=weights)
        learned = scattered(mean, positions(5, layer.name, layer.rows, layer.columns, mean.shape[1]), layer.columns)
        u, s, v = np.linalg.svd(learned, full_matrices=False)
        best = (u[:, :4] * s[:4]) @ v[:4]
        found = layer_update(training, run.published[1], layer)
        # Both factors are published at 16 bits.
        assert np.linalg.norm(found - best) < 1e-3 * np.linalg.norm(best)
        up, down = layer_factors(training, run.published[1], layer)
        assert np.allclose(up @ down, found, atol=1e-6) and not run.published[1].entries[name].q.any()


def test_a_round_of_the_second_stage_equals_its_reference(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """LoRA, begun with what the first stage learned."""
    run, nodes = both_stages(make_llama(), tmp_path)
    reference, factors = Reference(run, nodes["a"]), dict[str, nn.Parameter]()
    for layer in run.schema.layers:
        entries = run.published[1].entries
        first = initial_factor(f"{layer.name}/A", 4, layer.columns, 5)
        a = nn.Parameter(torch.from_numpy(first + entries[f"{layer.name}/A"].values()))
        b = nn.Parameter(torch.from_numpy(entries[f"{layer.name}/B"].values()))
        assert b.abs().max() > 0
        linear = reference.model.get_submodule(layer.name)
        linear.forward = lambda x, linear=linear, a=a, b=b: F.linear(x, linear.weight) + 2 * (x @ a.T) @ b.T
        factors |= {f"{layer.name}/A": a, f"{layer.name}/B": b}
    start = {name: factor.detach().clone() for name, factor in factors.items()}
    reference.train(run, run.plan(2), list(factors.values()), server_round=2)
    found = values_of(run.train("a", nodes["a"], 0, 2).path)
    assert found.keys() == factors.keys()
    for name, value in found.items():
        assert near(value, (factors[name] - start[name]).detach().numpy())


def test_who_was_away_or_killed_across_the_switch_ends_alike(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run, nodes = both_stages(make_llama(), tmp_path)
    plan, absent = run.plan(2), run.replica("absent", 2)
    run.adopt(absent, 1, whole=True)
    restarted = run.replica("a", 2)
    assert {replica.digest() for replica in (*nodes.values(), absent, restarted)} == {run.digests[1]}
    run.trainer("a", restarted, run.examples(0))[0].train(plan, (WHOLE,), run.own / "whole.bin")
    with pytest.raises(SystemExit):
        run.trainer("absent", absent, run.examples(0), stop=5)[0].train(plan, (WHOLE,), run.own / "never.bin")
    again = run.replica("absent", 2)
    trainer, done = run.trainer("a", again, run.examples(0))
    trainer.train(plan, (WHOLE,), run.own / "other.bin")
    one, other = values_of(run.own / "whole.bin"), values_of(run.own / "other.bin")
    assert done and one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    run.close(2, [run.train(name, replica, i, 2) for i, (name, replica) in enumerate(nodes.items())])
    for replica in (nodes["b"], again):
        run.adopt(replica, 2, whole=replica is again)
    assert nodes["b"].digest() == again.digest() == run.digests[2]


def test_a_stage_whose_last_round_failed_goes_on_as_lora(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing became factors: they begin as LoRA's, and what was learned stays beside them."""
    run = Run(SLoRASettings(**{**SIZES, "sparse_rounds": 2}), make_llama(layers=1), tmp_path)
    replica = run.replica("a")
    run.close(1, [run.train("a", replica, 0)])
    run.adopt(replica, 1, whole=True)
    layer = run.schema.layers[0]
    learned = layer_update(run.plan(1).training, run.published[1], layer)
    found = values_of(run.train("a", replica, 0, 3).path)
    assert np.abs(found[f"{layer.name}/B"]).max() > 0 and np.abs(learned).max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_sum_rounded_once(dtype: torch.dtype) -> None:
    base = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    places = torch.from_numpy(positions(1, "l", 6, 9, 3)).long()
    values = nn.Parameter(torch.full((6, 3), 0.125))
    weight = SparselyMovedWeight(FloatWeight(base), places, values)
    expected = (base + torch.zeros(6, 9).scatter(1, places, values.detach())).to(dtype)
    found = weight.copy_rows(slice(2, 5), torch.empty(3, 9, dtype=dtype))
    assert torch.equal(found, expected[2:5])
