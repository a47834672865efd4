# SPDX-License-Identifier: Apache-2.0
"""FedCyBGD: blocks that take turns, against a loop over an ordinary model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import Run, values_of

from edge_client.worker.model.weights import Int8Weight, PublishedWeight
from fedcore.methods.whole.fedcybgd import FedCyBGD, FedCyBGDSettings
from fedcore.round.training.dense import BlockOrder, blocks_of
from tests.contract.reference import Reference, near

SIZES: dict[str, Any] = {"steps": 8, "interval_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "bits": 16}
NAMES = [f"encoder.layer.{i}.{part}.dense" for i in range(12) for part in ("output", "intermediate")] + ["pooler.dense"]


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_a_cycle_has_each_block_once(order: BlockOrder) -> None:
    half = FedCyBGD(FedCyBGDSettings(order=order))
    cycles = [[half.training(12 * cycle + i + 1, 5).block(NAMES) for i in range(12)] for cycle in range(2)]
    for cycle in cycles:
        assert sorted(cycle) == sorted(blocks_of(NAMES)) and sum(map(len, cycle)) == len(NAMES)
    assert (cycles[0] == cycles[1]) == (order != "random")
    if order != "random":
        assert cycles[0] == list(blocks_of(NAMES))[:: 1 if order == "ascending" else -1]
    else:
        # Pinned: the order is the same everywhere.
        assert [blocks_of(NAMES).index(block) for block in cycles[0]] == [8, 5, 6, 9, 11, 3, 0, 4, 10, 7, 2, 1]


def test_a_model_without_blocks_is_one() -> None:
    assert blocks_of(["a", "b"]) == (("a", "b"),) and len(blocks_of(NAMES)) == 12
    assert blocks_of(NAMES)[11] == ("encoder.layer.11.output.dense", "encoder.layer.11.intermediate.dense", NAMES[-1])


def test_turns_equal_a_loop_over_an_ordinary_model(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Three turns of two blocks: what the others hold does not move by a bit, and a block goes on from where it was."""
    run = Run(FedCyBGDSettings(**SIZES), make_llama(), tmp_path)
    replica = run.replica("a")
    reference, blocks = Reference(run, replica), blocks_of(layer.name for layer in run.schema.layers)
    assert len(blocks) == 2
    for server_round in (1, 2, 3):
        block = blocks[(server_round - 1) % 2]
        start = {name: weight.detach().clone() for name, weight in reference.weights.items()}
        for name, weight in reference.weights.items():
            weight.requires_grad_(name in block)
        reference.train(run, run.plan(server_round), [reference.weights[name] for name in block], server_round)
        update = run.train("a", replica, 0, server_round)
        found = values_of(update.path)
        assert found.keys() == set(block)
        for name, value in found.items():
            assert near(value, (reference.weights[name] - start[name]).detach().numpy())
        before = run.published[-1]
        run.close(server_round, [update])
        run.adopt(replica, server_round, whole=server_round == 1)
        for name, entry in run.published[-1].entries.items():
            assert np.array_equal(entry.q, before.entries[name].q) == (name not in block)


def test_only_the_block_is_there_in_float32(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(FedCyBGDSettings(**SIZES), make_llama(), tmp_path)
    replica = run.replica("a")
    blocks = blocks_of(replica.layers)

    def floats() -> int:
        return sum(one.numel() for one in replica.model.module.parameters() if one.requires_grad)

    numbers = {name: layer.in_features * layer.out_features for name, layer in replica.layers.items()}
    assert floats() == 0
    replica.half.open(run.plan(2), "a", 0)
    assert floats() == sum(numbers[name] for name in blocks[1])
    replica.restore()
    assert floats() == 0 and all(isinstance(layer.base, PublishedWeight) for layer in replica.layers.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_base_plus_published_change_rounded_once(dtype: torch.dtype) -> None:
    chance = np.random.default_rng(0)
    base = Int8Weight(torch.from_numpy(chance.integers(-127, 128, (6, 9)).astype(np.int8)), torch.rand(6) / 64)
    weight = PublishedWeight(base)
    plain = base.copy_rows(slice(0, 6), torch.empty(6, 9))
    assert torch.equal(weight.copy_rows(slice(0, 6), torch.empty(6, 9)), plain)
    q, exponent = chance.integers(-9, 10, (6, 9)).astype(np.int16), np.arange(-12, -6, dtype=np.int8)
    weight.publish(q, exponent)
    expected = (plain + torch.from_numpy(np.ldexp(q.astype(np.float32), exponent[:, None].astype(int)))).to(dtype)
    assert torch.equal(weight.copy_rows(slice(2, 5), torch.empty(3, 9, dtype=dtype)), expected[2:5])
