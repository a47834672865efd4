# SPDX-License-Identifier: Apache-2.0
"""FedTT and FedTT+: cores and what they make, against einsum and a textbook adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import Run, values_of
from torch import nn
from torch.nn import functional as F

from edge_client.worker.methods.adapters.fedtt import contracted
from edge_client.worker.train.replica import Replica
from fedcore.errors import ConfigError, ModelError
from fedcore.methods.adapters.fedtt import FedTT, FedTTPlusSettings, FedTTSettings
from fedcore.model.state import ExactState
from fedcore.round.training import TensorTrainTraining
from fedcore.round.training.tensortrain import ALL_CORES
from fedcore.weights.initial import initial_adapter
from fedcore.weights.schema import AdapterTensor, LayerSpec, ModelSchema
from fedcore.weights.tensortrain import core_shapes, first_spread, sides
from tests.contract.reference import Reference, near

SIZES: dict[str, Any] = {"bottleneck": 8, "rank": 3, "steps": 8, "interval_steps": 2, "batch_size": 4, "bits": 16}


def cores_of(n: int, b: int, rank: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    chance = np.random.default_rng(seed)
    return [chance.normal(size=shape).astype(np.float32) for shape in core_shapes(n, b, rank)]


def einsum(cores: list[np.ndarray[Any, Any]], n: int, b: int) -> np.ndarray[Any, Any]:
    k = sides(n, b)
    tensors = [core.reshape(-1, k[j], core.shape[1]) for j, core in enumerate(cores)]
    return np.asarray(np.einsum("xai,ibj,jck,kdl,ley->abcde", *tensors, optimize=True)).reshape(n, b)


@pytest.mark.parametrize(("n", "b", "rank"), [(384, 64, 5), (64, 16, 4), (30, 7, 2), (32, 64, 9)])
def test_a_train_is_what_einsum_makes_of_it(n: int, b: int, rank: int) -> None:
    cores = cores_of(n, b, rank)
    found = contracted([torch.from_numpy(core) for core in cores], n, b).numpy()
    assert np.allclose(found, einsum(cores, n, b), rtol=1e-4, atol=1e-3)


def test_sizes_are_the_papers() -> None:
    """24 linears of MiniLM: 630 numbers each, a twentieth of what rank 8 of LoRA has."""
    layers = tuple(
        LayerSpec(f"encoder.layer.{i}.{name}.dense", 384, 384 if name.startswith("a") else 1536)
        for i in range(6)
        for name in ("attention.output", "output", "intermediate")
    )
    training = FedTT(FedTTSettings()).training(1, 0)
    shapes = training.layer_shapes(ModelSchema(layers, ()))
    assert sum(rows * columns for rows, columns in shapes.values()) == 24 * 630 == 15_120
    with pytest.raises(ConfigError, match="no layer's name ends with o_proj"):
        FedTT(FedTTSettings(target_modules=("o_proj",))).training(1, 0).shapes(ModelSchema(layers, ()))


def test_first_cores_make_a_matrix_like_a_fresh_linear_layers() -> None:
    spread = first_spread(384, 64, 5, 384)
    made = [
        initial_adapter(AdapterTensor(f"l/down/{j}", shape, spread=spread), 3)
        for j, shape in enumerate(core_shapes(384, 64, 5))
    ]
    assert 0.3 < float(einsum(made, 384, 64).var()) * 384 < 3
    # Pinned: a core's first numbers of a seed, 16-bit integers of SHAKE-128.
    assert np.rint(made[0][0] * (32768 / spread)).tolist() == [-9106, -4896, -15296, 7231, -17527]


def replica_of(settings: FedTTSettings, folder: Path, own: Path) -> tuple[Run, Replica]:
    run = Run(settings, folder, own)
    return run, run.replica("a")


def test_an_adapter_changes_no_bit_at_first(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_llama()
    run, replica = replica_of(FedTTSettings(**SIZES), folder, tmp_path / "run")
    plain = run.replica("plain").model
    token, behind = torch.arange(3, 20)[None], 0
    for module in list(plain.module.modules()):
        for name, child in module.named_children():
            if hasattr(child, "own"):
                setattr(module, name, child.own)
                behind += 1
    assert behind == 4, "behind attention and MLP of two blocks"
    with torch.no_grad():
        assert torch.equal(replica.model.backbone(token).last_hidden_state, plain.backbone(token).last_hidden_state)


def test_a_round_equals_its_reference(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run, replica = replica_of(FedTTSettings(**SIZES, learning_rate=1e-2), make_llama(), tmp_path)
    reference, training = Reference(run, replica), run.plan(1).training
    assert isinstance(training, TensorTrainTraining)
    cores: dict[str, nn.Parameter] = {}
    for layer in training.layers(run.schema):
        k = sides(layer.rows, 8)
        for side, inputs in (("down", layer.rows), ("up", 8)):
            spread = first_spread(layer.rows, 8, 3, inputs)
            for j, shape in enumerate(core_shapes(layer.rows, 8, 3)):
                name = f"{layer.name}/{side}/{j}"
                last = (side, j) == ("up", 4)
                value = initial_adapter(AdapterTensor(name, shape, spread=0.0 if last else spread), 5)
                cores[name] = nn.Parameter(torch.from_numpy(value.copy()))

        def matrix(side: str, name: str = layer.name, k: tuple[int, ...] = k) -> torch.Tensor:
            own = [cores[f"{name}/{side}/{j}"] for j in range(5)]
            tensors = [core.view(-1, k[j], core.shape[1]) for j, core in enumerate(own)]
            return torch.einsum("xai,ibj,jck,kdl,ley->abcde", *tensors).reshape(-1, 8)

        linear = reference.model.get_submodule(layer.name)

        def forward(x: torch.Tensor, linear: Any = linear, matrix: Any = matrix) -> torch.Tensor:
            h = F.linear(x, linear.weight)
            return h + F.gelu(h @ matrix("down")) @ matrix("up").T

        linear.forward = forward
    start = {name: core.detach().clone() for name, core in cores.items()}
    reference.train(run, run.plan(1), list(cores.values()))
    found = values_of(run.train("a", replica, 0).path)
    assert found.keys() == {f"/{name}" for name in ALL_CORES}
    layers = training.layers(run.schema)
    found = {f"{layer.name}{name}": value[i] for name, value in found.items() for i, layer in enumerate(layers)}
    whole, expected = (
        np.concatenate([of(name).ravel() for name in cores])
        for of in (found.__getitem__, lambda name: (cores[name] - start[name]).detach().numpy())
    )
    assert near(whole, expected)


def test_one_core_of_each_adapter_travels_and_the_mean_is_that_of_the_matrices(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_llama()
    run = Run(FedTTPlusSettings(**SIZES, learning_rate=1e-2), folder, tmp_path)
    nodes = {name: run.replica(name) for name in ("a", "b")}
    for server_round, core in ((1, "up/4"), (2, "down/0"), (3, "up/3")):
        training = run.plan(server_round).training
        assert isinstance(training, TensorTrainTraining) and training.trained == (core,)
        updates = [run.train(name, replica, i, server_round) for i, (name, replica) in enumerate(nodes.items())]
        layers = training.layers(run.schema)
        assert values_of(updates[0].path).keys() == {f"/{core}"}
        state, plan, total = run.state, run.plan(server_round), sum(update.weight for update in updates)
        after = run.half.aggregate(state, plan, updates)
        alone = [run.half.aggregate(state, plan, [update]) for update in updates]
        for layer in layers:
            side = core.split("/")[0]
            mean = sum(
                update.weight / total * matrix(run, one, layer, side)
                for update, one in zip(updates, alone, strict=True)
            )
            found, before = (matrix(run, one, layer, side) for one in (after, state))
            assert np.allclose(found, mean, atol=1e-5 * np.abs(mean).max())
            assert np.abs(found - before).max() > 1e-3 * np.abs(mean).max()
        run.close(server_round, updates)
        for replica in nodes.values():
            run.adopt(replica, server_round, whole=True)
    assert {f"/{name}" for name in ALL_CORES} == run.published[-1].entries.keys()


def matrix(run: Run, state: ExactState, layer: LayerSpec, side: str) -> np.ndarray[Any, Any]:
    """What an exact state makes of an adapter's matrix, in float64 units of 2**-32."""
    shapes, spread = core_shapes(layer.rows, 8, 3), first_spread(layer.rows, 8, 3, layer.rows if side == "down" else 8)
    cores, training = [], run.plan(1).training
    assert isinstance(training, TensorTrainTraining)
    behind = training.layers(run.schema)
    for j, shape in enumerate(shapes):
        name = f"{layer.name}/{side}/{j}"
        first = initial_adapter(AdapterTensor(name, shape, spread=0.0 if name.endswith("up/4") else spread), 5)
        row = next(i for i, one in enumerate(behind) if one is layer)
        cores.append(first + state.sums[f"/{side}/{j}"][row].reshape(shape) * 2.0**-32)
    return einsum(cores, layer.rows, 8)


def test_a_layer_whose_weight_is_looked_at_is_refused_by_name(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(FedTTSettings(**SIZES), make_llama(layers=1), tmp_path)
    replica = run.replica("a")
    behind: Any = replica.model.module.get_submodule("model.layers.0.mlp.down_proj")
    with pytest.raises(ModelError, match="behind which no adapter can stand"):
        F.linear(torch.ones(1, behind.in_features), behind.weight)
