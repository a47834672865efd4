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
from method_runs import CODECS, CPU, METHODS, TASK, Run, examples, values_of
from torch import Tensor, nn

from edge_client.worker.data.tasks import Encoded, batches, summed_loss
from edge_client.worker.train.round import learning_rate_factor
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.round.training import DirectionTraining, FactorTraining
from fedcore.subspaces.projection import projection_of
from fedcore.subspaces.rows import KINDS
from fedcore.subspaces.rows.coordinate import coordinate
from fedcore.subspaces.schedule import step_directions
from fedcore.weights.initial import initial_factor
from fedcore.weights.schema import LayerSpec
from tests.contract.reference import Reference, near


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
        assert near(found[name], change)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("fedit", "ffa-lora", "rolora", "fedsa-lora", "flora", "fedex-lora")),
        ("ffa-lora", {"projection": "coordinate"}),
    ],
)
def test_lora_equals_its_reference(
    name: str, options: dict[str, Any], make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    kind: Any = next(kind for kind in METHODS if kind.__struct_config__.tag == name)
    run = Run(
        kind(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, rank=4, alpha=8.0, **options),
        make_llama(),
        tmp_path,
    )
    replica = run.replica("a")
    reference = Reference(run, replica)
    factors: dict[str, Tensor] = {}
    start: dict[str, Tensor] = {}
    training = run.plan(1).training
    assert isinstance(training, FactorTraining)
    for layer in run.schema.layers:
        seed, entry = training.node_seed(training.seeds, "a"), f"{layer.name}/A"
        drawn = initial_factor(entry, 4, layer.columns, seed)
        if options:
            drawn = (coordinate(seed, entry, 4, layer.columns) / 3**0.5).astype(np.float32)
        a = nn.Parameter(torch.from_numpy(drawn))
        b = nn.Parameter(torch.zeros(layer.rows, 4))
        linear = reference.model.get_submodule(layer.name)
        linear.forward = lambda x, linear=linear, a=a, b=b: nn.functional.linear(x, linear.weight) + 2 * (x @ a.T) @ b.T
        factors |= {f"{layer.name}/A": a, f"{layer.name}/B": b}
        start |= {f"{layer.name}/A": a.detach().clone(), f"{layer.name}/B": b.detach().clone()}
    reference.train(run, run.plan(1), [factor for n, factor in factors.items() if n[-1] in training.trained])
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == {n for n in factors if n[-1] in training.trained and n[-1] in training.shared}
    for n, value in found.items():
        assert near(value, (factors[n] - start[n]).detach().numpy())


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
        made = projection_of(run.published[0].rows_from, seeds, 4, layer.name, layer.columns, run.artefact)
        p, b = torch.from_numpy(made.values().astype(np.float32)), nn.Parameter(torch.zeros(layer.rows, 4))
        linear = reference.model.get_submodule(layer.name)
        linear.forward = lambda x, linear=linear, p=p, b=b: nn.functional.linear(x, linear.weight) + (x @ p.T) @ b.T
        factors[layer.name] = b
    reference.train(run, run.plan(1), list(factors.values()))
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == factors.keys()
    for name, value in found.items():
        assert near(value, factors[name].detach().numpy())


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
    kind: Any = next(kind for kind in METHODS if kind.__struct_config__.tag == name)
    settings = kind(steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2, num_seeds=5)
    run = Run(settings, make_llama(), tmp_path)
    replica, training = run.replica("a"), run.plan(1).training
    assert isinstance(training, DirectionTraining)
    reference, table, stream = Reference(run, replica), np.zeros(5), batches(examples(0), 4, 5, 1, "a")
    slopes: list[list[float]] = [[] for _ in table]
    # Nothing is known of the slopes yet: all directions are as likely.
    for step, k in enumerate(step_directions(5, 1, "a", 8, [1.0] * 5)):
        batch = next(stream)

        def loss(length: float, k: int = k, batch: list[Encoded] = batch) -> float:
            for layer in run.schema.layers:
                reference.weights[layer.name].data += length * torch.from_numpy(_signs(training, k, layer))
            return float(summed_loss(reference.built, batch, TASK, 0, CPU)) / sum(e.weight for e in batch)

        slope = (loss(5e-4) - loss(-1e-3)) / 1e-3
        move = -1e-2 * learning_rate_factor(step, 8) * slope
        loss(5e-4 + move)
        table[k] += move
        slopes[k].append(abs(slope))
    found = values_of(run.train("a", replica, 0).path)
    assert near(np.ldexp(found.pop("/coefficients")[0], training.unit_exponent), table)
    if name == "fedkseed-pro":
        amplitudes, uses = found.pop("/amplitudes")[0], found.pop("/uses")[0] * 256
        assert near(np.ldexp(amplitudes, training.unit_exponent) / 1e-2, np.array([sum(some) for some in slopes]))
        assert uses.tolist() == [len(some) for some in slopes]
    assert not found


@pytest.mark.parametrize(("allocation", "optimiser"), [("norm", "adam"), ("equal", "sgd")])
def test_ferret_equals_its_reference(
    allocation: str, optimiser: str, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    kind: Any = next(kind for kind in METHODS if kind.__struct_config__.tag == "ferret")
    settings = kind(
        steps=8,
        interval_steps=2,
        batch_size=4,
        learning_rate=1e-2,
        num_directions=12,
        allocation=allocation,
        optimiser=optimiser,
    )
    run = Run(settings, make_llama(), tmp_path)
    replica, training = run.replica("a"), run.plan(1).training
    assert isinstance(training, DirectionTraining)
    reference = Reference(run, replica)
    start = {name: weight.clone() for name, weight in reference.weights.items()}
    for weight in reference.weights.values():
        weight.requires_grad_(True)
    kind_of = torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam
    reference.train(run, run.plan(1), list(reference.weights.values()), optimiser=kind_of)
    changes = {name: (weight - start[name]).detach().numpy() for name, weight in reference.weights.items()}
    largest = max(np.linalg.norm(change) for change in changes.values())
    found, used = values_of(run.train("a", replica, 0).path), []
    for layer in run.schema.layers:
        coefficients = found[f"{layer.name}/coefficients"][0]
        count = max(2, int(12 * np.linalg.norm(changes[layer.name]) / largest)) if allocation == "norm" else 12
        products = np.array([(_signs(training, k, layer) * changes[layer.name]).sum() for k in range(12)])
        assert near(coefficients, np.where(coefficients != 0, products, 0) / count)
        used.append(int((coefficients != 0).sum()))
        assert used[-1] == count
    assert max(used) == 12 and (min(used) < 12) == (allocation == "norm")


@pytest.mark.parametrize("codec", ["float32", "integers"])
def test_fed3r_equals_its_reference(codec: Any, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Second moments of the last token's hidden state, a one, and the label as a one among zeros."""
    run = Run(Fed3RSettings(batch_size=4, bits=16, codec=codec), make_llama(), tmp_path)
    replica = run.replica("a")
    rows, reference = run.examples(1), Reference(run, replica)
    wanted = []
    for example in rows:
        with torch.no_grad():
            hidden = reference.model(input_ids=torch.tensor([example.ids])).last_hidden_state[0, -1]
        label = [float(example.target == place) for place in range(3)]
        wanted.append(np.concatenate([hidden.double().numpy() / 8, [1.0], label]))
    moments = np.array(wanted).T @ np.array(wanted) / len(rows)
    update = run.train("a", replica, 1)
    found = values_of(update.path)
    assert update.header.examples == len(rows) and found.keys() == {"/moments"}
    side = len(moments)
    assert found["/moments"].shape == (-(-side // 2), side + 1)
    # Row i from the diagonal on, and row n - 1 - i at its end.
    for i in range(side):
        line = found["/moments"][min(i, side - 1 - i)]
        place = line[: side - i] if i <= side - 1 - i else line[i + 1 :]
        assert np.allclose(place, moments[i, i:], atol=1e-5 if codec == "float32" else 1e-4)
