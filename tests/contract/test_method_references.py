# SPDX-License-Identifier: Apache-2.0
"""One client's round of each method against an independent reference: an ordinary model of dequantised weights, a loop,
textbook layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import CODECS, CPU, METHODS, MOMENTS, TASK, Run, examples, values_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from edge_client.worker.data.tasks import Encoded, batches, summed_loss
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.round import learning_rate_factor
from fedcore.device.memoryplan import MemoryPlan
from fedcore.methods.fedavg import FedAvgSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.state import ExactState
from fedcore.model.update import WeightedUpdate, check_update
from fedcore.round.plan import Plan
from fedcore.round.training import DirectionTraining, FactorTraining
from fedcore.subspaces.projection import projection_of, signs
from fedcore.subspaces.rows import KINDS
from fedcore.subspaces.schedule import interval_order, step_directions
from fedcore.weights.initial import initial_factor
from fedcore.weights.quantise import dequantise_weight, quantise_weight
from fedcore.weights.schema import LayerSpec


class Reference:
    """Full fine-tuning, or LoRA, with no code of ours but batches and the loss."""

    def __init__(self, run: Run, replica: Replica) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(run.folder, dtype=torch.float32)
        self.model.output_weight = replica.model.output_weight
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.weights: dict[str, nn.Parameter] = {}
        for layer in run.schema.layers:
            linear = self.model.get_submodule(layer.name)
            linear.weight = nn.Parameter(
                torch.from_numpy(dequantise_weight(*quantise_weight(linear.weight.numpy()))), requires_grad=False
            )
            self.weights[layer.name] = linear.weight

    def train(self, run: Run, plan: Plan, trained: list[Tensor]) -> None:
        adam = torch.optim.Adam(trained)
        stream = batches(examples(0), 4, 5, 1, "a")
        for step in range(8):
            adam.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(step, 8)
            adam.zero_grad()
            batch = next(stream)
            (summed_loss(self.model, batch, TASK, 0, CPU) / sum(e.weight for e in batch)).backward()
            adam.step()


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_full_fine_tuning_equals_its_reference(codec: Any, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    settings = FedAvgSettings(
        steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, codec=codec, density=0.1
    )
    run = Run(settings, make_llama(), tmp_path)
    replica = run.replica("a")
    reference = Reference(run, replica)
    start = {name: weight.clone() for name, weight in reference.weights.items()}
    for weight in reference.weights.values():
        weight.requires_grad_(True)
    reference.train(run, run.plan(1), list(reference.weights.values()))
    found = values_of(run.train("a", replica, 0).path)
    for name, weight in reference.weights.items():
        change = (weight - start[name]).detach().numpy()
        if codec == "top-k":
            sent = found[name] != 0
            assert sent.sum() == change.size // 10
            # All that was sent is as large as all that was not, up to float rounding.
            assert np.abs(change[sent]).min() > 0.99 * np.sort(np.abs(change), axis=None)[-(change.size // 10)]
            change = np.where(sent, change, 0)
        assert _near(found[name], change)


@pytest.mark.parametrize("name", ["fedit", "ffa-lora", "rolora", "fedsa-lora", "flora", "fedex-lora"])
def test_lora_equals_its_reference(name: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == name)
    run = Run(
        kind(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, rank=4, alpha=8.0),
        make_llama(),
        tmp_path,
    )
    replica = run.replica("a")
    reference, factors, start = Reference(run, replica), {}, {}
    training = run.plan(1).training
    assert isinstance(training, FactorTraining)
    for layer in run.schema.layers:
        a = nn.Parameter(
            torch.from_numpy(initial_factor(f"{layer.name}/A", 4, layer.columns, training.first_seed(training.seeds)))
        )
        b = nn.Parameter(torch.zeros(layer.rows, 4))
        linear = reference.model.get_submodule(layer.name)
        linear.forward = lambda x, linear=linear, a=a, b=b: nn.functional.linear(x, linear.weight) + 2 * (x @ a.T) @ b.T
        factors |= {f"{layer.name}/A": a, f"{layer.name}/B": b}
        start |= {f"{layer.name}/A": a.detach().clone(), f"{layer.name}/B": b.detach().clone()}
    reference.train(run, run.plan(1), [factor for n, factor in factors.items() if n[-1] in training.trained])
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == {n for n in factors if n[-1] in training.trained and n[-1] in training.shared}
    for n, value in found.items():
        assert _near(value, (factors[n] - start[n]).detach().numpy())


@pytest.mark.parametrize("projection", [*KINDS, "informed"])
def test_fedkrso_equals_its_reference(projection: Any, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """One subspace, one interval: a linear layer with B between P and the output."""
    settings = FedKRSOSettings(
        steps=8, interval_steps=8, batch_size=4, learning_rate=1e-2, bits=16, rank=4, num_seeds=1, projection=projection
    )
    run = Run(settings, make_llama(), tmp_path)
    replica, seeds = run.replica("a"), run.plan(1).training.seeds
    reference, factors = Reference(run, replica), {}
    for layer in run.schema.layers:
        made = projection_of(run.published[0].rows_from, seeds, 4, layer.name, layer.columns, run.informed)
        p, b = torch.from_numpy(made.values().astype(np.float32)), nn.Parameter(torch.zeros(layer.rows, 4))
        linear = reference.model.get_submodule(layer.name)
        linear.forward = lambda x, linear=linear, p=p, b=b: nn.functional.linear(x, linear.weight) + (x @ p.T) @ b.T
        factors[layer.name] = b
    reference.train(run, run.plan(1), list(factors.values()))
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == factors.keys()
    for name, value in found.items():
        assert _near(value, factors[name].detach().numpy())


def _signs(training: DirectionTraining, index: int, layer: LayerSpec) -> np.ndarray[Any, Any]:
    """Direction `index` of a layer, from the written definition: each 64 rows are a stream of bits, 1 for -1."""
    out = []
    for start in range(0, layer.rows, 64):
        rows = min(64, layer.rows - start)
        words = (index, layer.columns, start // 64)
        head = (
            b"fedkrso direction 1"
            + training.seeds[0].to_bytes(8, "little")
            + b"".join(word.to_bytes(4, "little") for word in words)
        )
        data = hashlib.shake_128(head + layer.name.encode()).digest((rows * layer.columns + 7) // 8)
        bits = [data[i // 8] >> (i % 8) & 1 for i in range(rows * layer.columns)]
        out.append(1 - 2 * np.array(bits, np.float32).reshape(rows, layer.columns))
    return np.concatenate(out)


@pytest.mark.parametrize("name", ["fedkseed", "fedkseed-pro"])
def test_fedkseed_equals_its_reference(name: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == name)
    settings = kind(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, num_seeds=5)
    run = Run(settings, make_llama(), tmp_path)
    replica, training = run.replica("a"), run.plan(1).training
    reference, table, stream = Reference(run, replica), np.zeros(5), batches(examples(0), 4, 5, 1, "a")
    slopes: list[list[float]] = [[] for _ in table]
    # Nothing is known of the slopes yet: all directions are as likely.
    for step, k in enumerate(step_directions(5, 1, "a", 8, [1.0] * 5)):
        batch = next(stream)

        def loss(length: float, k: int = k, batch: list[Encoded] = batch) -> float:
            for layer in run.schema.layers:
                reference.weights[layer.name].data += length * torch.from_numpy(_signs(training, k, layer))
            return float(summed_loss(reference.model, batch, TASK, 0, CPU)) / sum(e.weight for e in batch)

        slope = (loss(5e-4) - loss(-1e-3)) / 1e-3
        move = -1e-2 * learning_rate_factor(step, 8) * slope
        loss(5e-4 + move)
        table[k] += move
        slopes[k].append(abs(slope))
    found = values_of(run.train("a", replica, 0).path)
    assert _near(np.ldexp(found.pop("/coefficients")[0], training.unit_exponent), table)
    if name == "fedkseed-pro":
        amplitudes, uses = found.pop("/amplitudes")[0], found.pop("/uses")[0] * 256
        assert _near(np.ldexp(amplitudes, training.unit_exponent) / 1e-2, np.array([sum(some) for some in slopes]))
        assert uses.tolist() == [len(some) for some in slopes]
    assert not found


@pytest.mark.parametrize("allocation", ["norm", "equal"])
def test_ferret_equals_its_reference(allocation: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == "ferret")
    settings = kind(
        steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, num_directions=12, allocation=allocation
    )
    run = Run(settings, make_llama(), tmp_path)
    replica, training = run.replica("a"), run.plan(1).training
    reference = Reference(run, replica)
    start = {name: weight.clone() for name, weight in reference.weights.items()}
    for weight in reference.weights.values():
        weight.requires_grad_(True)
    reference.train(run, run.plan(1), list(reference.weights.values()))
    changes = {name: (weight - start[name]).detach().numpy() for name, weight in reference.weights.items()}
    largest = max(np.linalg.norm(change) for change in changes.values())
    found, used = values_of(run.train("a", replica, 0).path), []
    for layer in run.schema.layers:
        coefficients = found[f"{layer.name}/coefficients"][0]
        count = max(2, int(12 * np.linalg.norm(changes[layer.name]) / largest)) if allocation == "norm" else 12
        products = np.array([(_signs(training, k, layer) * changes[layer.name]).sum() for k in range(12)])
        assert _near(coefficients, np.where(coefficients != 0, products, 0) / count)
        used.append(int((coefficients != 0).sum()))
        assert used[-1] == count
    assert max(used) == 12 and (min(used) < 12) == (allocation == "norm")


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
    roots = {name: known.get(name, torch.zeros(1)).clone().expand(value.shape).clone() for name, value in sums.items()}
    states: dict[tuple[str, int], dict[str, Any]] = {}
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
            if moments != "carried" or before is None:
                states[layer.name, k] = {"s": _filled(roots[layer.name], mine)}
            elif (layer.name, k) not in states:
                old = states[layer.name, before]
                moved = old["m"] @ all_of_them[before] @ all_of_them[k].T * (rank / layer.columns)
                states[layer.name, k] = {"t": old["t"], "m": moved, "v": old["v"]}
        for step in (2 * interval, 2 * interval + 1):
            batch = next(stream)
            (summed_loss(reference.model, batch, TASK, 0, CPU) / sum(e.weight for e in batch)).backward()
            for name, factor in factors.items():
                state = states[name, k]
                _adam(factor, factor.grad, step, state, 2.0 if moments == "averaged" else 0.0)
                factor.grad = None
        for name, factor in factors.items():
            sums[name][:, mine] += factor.detach()
            roots[name][:, mine] = states[name, k]["root"]
            reference.weights[name].data += (factor @ projections[name]).detach()
        before = k
    return sums, roots


@pytest.mark.parametrize("moments", MOMENTS)
def test_fedkrso_equals_its_reference_for_each_choice_of_moments(
    moments: Any, make_llama: Callable[..., Path], tmp_path: Path
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
    if moments == "averaged":
        # As some round before left them: each row's in its own order of magnitude, one column and one subspace that
        # nobody has trained.
        for layer in run.schema.layers:
            chance = torch.Generator().manual_seed(len(known))
            root = (
                torch.rand(layer.rows, 12, generator=chance) * torch.rand(layer.rows, 1, generator=chance) * 1e-2
                + 2.0**-20
            )
            root[:, 5] = root[:, 8:] = 0
            run.state.sums[f"{layer.name}/second"] = np.rint(np.ldexp(root.numpy().astype(np.float64), 32)).astype(
                np.int64
            )
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
        assert _near(found.pop(layer.name), sums[layer.name].numpy())
        if moments == "averaged":
            change = roots[layer.name] - known[layer.name]
            assert _near(found.pop(f"{layer.name}/second"), change.numpy())
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


def _near(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Up to float rounding: Adam's first steps are signs of gradients, so a gradient near zero may go either way."""
    cosine = float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
    return cosine > 0.999 and 0.99 < np.linalg.norm(one) / np.linalg.norm(other) < 1.01
