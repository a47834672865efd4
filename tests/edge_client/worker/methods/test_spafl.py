# SPDX-License-Identifier: Apache-2.0
"""SpaFL: switched rows and their gradients against autograd, weights that follow thresholds, and what stays on a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import CPU, TASK, Run, examples, values_of
from torch.nn import functional as F

from edge_client.worker.data.tasks import batches, summed_loss
from edge_client.worker.methods.whole.spafl import Masked
from edge_client.worker.model.layer import FloatWeight, SubspaceLinear
from edge_client.worker.model.padding import Padding
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.round import learning_rate_factor
from fedcore.errors import ConfigError
from fedcore.methods.whole.spafl import SpaFLSettings
from tests.contract.reference import Reference, near

SIZES: dict[str, Any] = {"steps": 8, "interval_steps": 2, "batch_size": 4, "learning_rate": 0.1, "bits": 16}


def switched(weight: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Straight-through, of autograd's own operations."""
    above = weight.abs().mean(dim=1) - threshold
    near_step = above.clamp(-1, 1)
    return weight * ((above > 0).float() - near_step.detach() + near_step)[:, None]


def masked(rows: int, columns: int) -> Masked:
    layer = Masked(SubspaceLinear("l", FloatWeight(torch.zeros(rows, columns))), Padding())
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, columns, generator=chance))
        layer.threshold.copy_(torch.linspace(-0.5, 2.5, rows))
    return layer


def test_switched_rows_and_their_gradients_are_autograds() -> None:
    layer, x = masked(8, 5), torch.randn(3, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight, threshold, theirs = (
        one.detach().clone().requires_grad_(True) for one in (layer.weight, layer.threshold, x)
    )
    found, expected = layer(x), F.linear(theirs, switched(weight, threshold))
    assert torch.allclose(found, expected, atol=1e-6) and 0 < int(layer.on().sum()) < 8
    assert (found[:, ~layer.on()] == 0).all()
    found.square().sum().backward()
    expected.square().sum().backward()
    for one, other in ((layer.weight, weight), (layer.threshold, threshold), (x, theirs)):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-5)
    assert float(layer.threshold.grad.abs().max()) > 0  # type: ignore[union-attr]


def test_a_layer_with_hardly_a_row_begins_again() -> None:
    layer = masked(8, 5)
    layer.keep_some()
    assert layer.threshold.abs().max() > 0
    with torch.no_grad():
        layer.threshold.fill_(9.0)
    layer.keep_some()
    assert not layer.threshold.any() and bool(layer.on().all())


def test_a_round_equals_its_reference(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    settings = SpaFLSettings(**SIZES, coefficient=0.005)
    run = Run(settings, make_llama(), tmp_path)
    replica = run.replica("a")
    reference, thresholds = Reference(run, replica), {}
    for layer in run.schema.layers:
        linear = reference.model.get_submodule(layer.name)
        own = torch.zeros(layer.rows, requires_grad=True)
        linear.weight.requires_grad_(True)
        linear.forward = lambda x, linear=linear, own=own: F.linear(x, switched(linear.weight, own))
        thresholds[layer.name] = own
    trained = [*reference.weights.values(), *thresholds.values()]
    sgd, stream = torch.optim.SGD(trained, lr=0.1, momentum=0.9), batches(examples(0), 4, 5, 1, "a")
    for step in range(8):
        sgd.param_groups[0]["lr"] = 0.1 * learning_rate_factor(step, 8)
        sgd.zero_grad()
        batch = next(stream)
        loss = summed_loss(reference.built, batch, TASK, 0, CPU) / sum(one.weight for one in batch)
        (loss + 0.005 * sum(torch.exp(-one).sum() for one in thresholds.values())).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        sgd.step()
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == {f"{name}/threshold" for name in thresholds}
    for name, own in thresholds.items():
        assert found[f"{name}/threshold"].shape == (1, own.numel())
        assert near(found[f"{name}/threshold"][0], own.detach().numpy())
    kept = weights_of(replica)
    for name, weight in reference.weights.items():
        assert near(kept[name].numpy() - start_of(run)[name], weight.detach().numpy() - start_of(run)[name])


def weights_of(replica: Replica) -> dict[str, torch.Tensor]:
    half: Any = replica.half
    return {name: layer.weight.detach().clone() for name, layer in half._layers.items()}


def start_of(run: Run) -> dict[str, np.ndarray[Any, Any]]:
    return {layer.name: run.base.values(layer) for layer in run.schema.layers}


def test_weights_stay_and_follow_what_became_of_thresholds(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(SpaFLSettings(**SIZES, coefficient=0.05), make_llama(), tmp_path)
    nodes = {name: run.replica(name) for name in ("a", "b")}
    updates = [run.train(name, replica, i) for i, (name, replica) in enumerate(nodes.items())]
    left = {name: weights_of(replica) for name, replica in nodes.items()}
    assert any(not torch.equal(left["a"][name], left["b"][name]) for name in left["a"])
    run.close(1, updates)
    for replica in nodes.values():
        run.adopt(replica, 1, whole=True)
    again = run.replica("a", 2)
    again.become("r", "a")
    again.open(run.plan(2))
    again.half.open(run.plan(2), "a", 0)
    layer = run.schema.layers[0]
    threshold = run.published[1].entries[f"{layer.name}/threshold"].values()[0]
    mean = sum(
        update.weight * values_of(update.path)[f"{layer.name}/threshold"][0].astype(np.float64) for update in updates
    ) / sum(update.weight for update in updates)
    assert np.allclose(threshold, mean, atol=1e-5) and np.abs(mean).max() > 0
    before = left["a"][layer.name].numpy()
    expected = before - (threshold * np.sign(before.sum(axis=1)) / layer.columns)[:, None]
    assert np.allclose(weights_of(again)[layer.name].numpy(), expected, atol=1e-6)
    assert not np.allclose(expected, before, atol=1e-6)
    # Who lost its file begins with the base.
    for path in (run.own / "b" / "local").glob("*/*.local"):
        path.unlink()
    lost = run.replica("b", 2)
    lost.become("r", "b")
    assert np.array_equal(weights_of(lost)[layer.name].numpy(), run.base.values(layer))
    assert lost.digest() == again.digest() == run.digests[1]


def test_what_travels_is_a_number_for_each_row(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(SpaFLSettings(**SIZES), make_llama(layers=1), tmp_path)
    training, schema = run.plan(1).training, run.schema
    rows = sum(layer.rows for layer in schema.layers)
    assert sum(a * b for a, b in training.update_shapes(schema).values()) == rows and not training.shares_model
    weights = sum(layer.rows * layer.columns for layer in schema.layers)
    assert training.local_numbers(schema) == weights + rows
    for key, value in (("coefficient", -1.0), ("coefficient", 2.0), ("gradient_clip", 0.0)):
        with pytest.raises(ConfigError, match=key):
            SpaFLSettings(**{key: value})  # type: ignore[arg-type]
