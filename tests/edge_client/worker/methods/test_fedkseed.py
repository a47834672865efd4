# SPDX-License-Identifier: Apache-2.0
"""Training without a backward pass: what it keeps in memory, what memory plans change, and the head that trains beside
it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edge_client.process.measuring import Request
from edge_client.worker.data.tasks import Encoded, summed_loss
from edge_client.worker.model.fused import fuse
from edge_client.worker.model.weights import FloatWeight, Int8Weight, ShiftedWeight
from edge_client.worker.programs.measure import local_plan
from edge_client.worker.train.calibrate import calibrate
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ExactnessError, WorkerError
from fedcore.methods.seeded.fedkseed import FedKSeed, FedKSeedSettings
from fedcore.model.learned import layer_update
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import RowScaled
from fedcore.numbers.records import read_records
from fedcore.round.checksums import checksums
from fedcore.round.plan import Plan
from fedcore.round.training import COEFFICIENTS
from fedcore.subspaces.directions import direction

CPU = torch.device("cpu")
CAUSAL = TaskSection(kind="causal-lm", max_length=24)
LABELS = TaskSection(kind="text-classification", labels=("a", "b"), max_length=24)
WHOLE = MemoryPlan(micro_batch_size=4)


def examples(task: TaskSection) -> list[Encoded]:
    target = (lambda i: None) if task is CAUSAL else (lambda i: i % 2)
    return [Encoded(tuple((5 * i + j) % 200 + 3 for j in range(10 + i)), None, target(i)) for i in range(8)]


def plan_of(folder: Path, task: TaskSection = CAUSAL, **changes: Any) -> Plan:
    plan = local_plan(
        folder, task, Request(model_folder="", task=task, batch_size=4, length=24, memory=WHOLE, rank=4, pool=3)
    )
    settings = FedKSeedSettings(
        **{"steps": 8, "interval_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "num_seeds": 6, **changes}
    )
    training = FedKSeed(settings).training(1, 0)
    return msgspec.structs.replace(plan, training=training, checksums=checksums(training, plan.model_schema))


class Node:
    def __init__(
        self, folder: Path, own: Path, plan: Plan, *, mapped: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.set_num_threads(1)
        self.plan, self.own = plan, own
        self.replica = Replica(plan, folder, own, CPU, dtype, mapped=mapped)
        fuse(self.replica.model.module)
        self.trainer = Trainer(self.replica, examples(plan.task), own / "intervals", "r", "n", 0, CPU)

    def update(self, memory: MemoryPlan = WHOLE) -> dict[str, np.ndarray[Any, Any]]:
        path = self.own / "update.bin"
        self.trainer.train(self.plan, (memory,), path)
        return {record.name: record.part.values() for record in read_records(path)}

    def publish(self, plan: Plan, q: list[int], exponent: int) -> PublishedState:
        part = RowScaled(np.array([q], np.int16), np.array([exponent], np.int8))
        state = PublishedState.zero(plan.training, plan.model_schema)
        state = PublishedState(1, state.seeds, 0, {**state.entries, COEFFICIENTS: part})
        self.replica.half.install(state)
        return state

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        return {
            name: layer.base.copy_rows(slice(0, layer.out_features), torch.empty(layer.base.shape)).numpy()
            for name, layer in self.replica.layers.items()
        }


@pytest.mark.parametrize(
    "memory",
    [
        MemoryPlan(micro_batch_size=1),
        MemoryPlan(micro_batch_size=3, checkpointing=True),
        MemoryPlan(micro_batch_size=4, block_rows=16),
    ],
)
def test_the_memory_plan_changes_nothing_beyond_rounding(
    make_llama: Callable[..., Path], tmp_path: Path, memory: MemoryPlan
) -> None:
    folder = make_llama()
    plan = plan_of(folder)
    one, other = (
        Node(folder, tmp_path / "a", plan).update(),
        Node(folder, tmp_path / "b", plan, mapped=True).update(memory),
    )
    # A slope is a difference of two losses that agree in four digits.
    assert np.allclose(one[COEFFICIENTS], other[COEFFICIENTS], rtol=0, atol=0.02 * np.abs(one[COEFFICIENTS]).max())


def test_weights_on_disk_give_the_same_update_bit_for_bit(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_llama()
    plan = plan_of(folder)
    one, other = Node(folder, tmp_path / "a", plan).update(), Node(folder, tmp_path / "b", plan, mapped=True).update()
    assert np.array_equal(one[COEFFICIENTS], other[COEFFICIENTS]) and one[COEFFICIENTS].any()


def test_weights_are_the_base_plus_what_was_published_bit_for_bit(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """Also after a detour: what a round adds goes again without a trace, and so does another version."""
    folder = make_llama()
    plan = plan_of(folder)
    node = Node(folder, tmp_path / "a", plan)
    before = node.weights()
    node.publish(plan, [3, -1, 0, 700, 2, -9], -16)
    node.update()
    state = node.publish(plan, [31000, -12345, 17, 0, 1, -29999], -18)
    for layer in plan.model_schema.layers:
        learned = layer_update(plan.training, state, layer)
        assert np.abs(learned).max() > 1e-3
        assert np.array_equal(node.weights()[layer.name], np.add(before[layer.name], learned, dtype=np.float32))
    node.publish(plan, [0] * 6, -18)
    assert all(np.array_equal(node.weights()[name], value) for name, value in before.items())


def test_a_pass_keeps_no_activation(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    for task, limit in ((CAUSAL, 0), (LABELS, 4)):
        folder = make_llama(task.kind)
        node = Node(folder, tmp_path / task.kind, plan_of(folder, task))
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = summed_loss(node.replica.model, examples(task)[:4], task, 0, CPU)
        assert loss.requires_grad == (task is LABELS)
        # The head's input is all that its gradient needs, and the loss its scores.
        width = node.replica.model.module.config.hidden_size
        assert sum(kept) <= limit * 17 * width


def test_the_head_takes_the_mean_gradient_of_both_passes(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_llama()
    plan = plan_of(folder, LABELS)
    node = Node(folder, tmp_path / "a", plan)
    node.replica.open(plan)
    half, tensors = node.replica.half, node.replica.tensors
    half.open(plan, "n", 0)
    half.begin(0)
    passes: list[dict[str, torch.Tensor]] = []

    def run() -> float:
        # As when memory runs out in the second pass: what it found so far is dropped, and it is repeated.
        for _ in range(1 + len(passes)):
            for tensor in tensors.values():
                tensor.grad = None if passes else tensor.grad
            loss = summed_loss(node.replica.model, examples(LABELS)[:4], LABELS, 0, CPU) / 4
            loss.backward()
        passes.append({name: tensor.grad.clone() for name, tensor in tensors.items()})
        return float(loss.detach())

    half.measure(0, run)
    for name, tensor in tensors.items():
        above, below = passes[0][name], passes[1][name]
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, (above + below) / 2) and not torch.equal(above, below)


def test_the_head_trains(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_llama()
    update = Node(folder, tmp_path / "a", plan_of(folder, LABELS)).update()
    assert update["score.weight"].any() and update[COEFFICIENTS].any()


def test_calibration_needs_no_gradient_and_learns_nothing(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_llama()
    plan = plan_of(folder)
    node = Node(folder, tmp_path / "a", plan)
    before = node.weights()
    calibrate(node.replica, plan, 8, 0, CPU)
    assert all(np.array_equal(node.weights()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "base",
    [Int8Weight(torch.full((3, 4), 50, dtype=torch.int8), torch.full((3,), 0.02)), FloatWeight(torch.ones(3, 4))],
)
def test_a_small_step_is_not_rounded_away_in_16_bits(base: Int8Weight | FloatWeight) -> None:
    """Beside a weight of 1 bfloat16 has steps of 2**-7: a change and a step that only together reach half of one
    show."""
    weight = ShiftedWeight(base, 2.0**-20)
    weight.add(slice(1, 3), lambda change: np.copyto(change, 3 * 2**10))
    weight.step = (3 * 2.0**-10, lambda rows, out: np.copyto(out, np.int8(1)))
    out = weight.copy_rows(slice(0, 3), torch.empty(3, 4, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and out[0].tolist() == [1.0] * 4 and out[1].tolist() == [1 + 2.0**-7] * 4


def test_steps_that_are_too_large_are_refused(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_llama()
    plan = plan_of(folder)
    node = Node(folder, tmp_path / "a", plan)
    with pytest.raises(ExactnessError, match="too large"):
        node.publish(plan, [32000] * 6, -10)
    half = node.replica.half
    half.open(plan, "n", 0)
    optimiser = half.begin(0)
    losses = iter((2e6, -2e6))
    half.measure(0, lambda: next(losses))
    optimiser.step()
    with pytest.raises(WorkerError, match="learning_rate"):
        half.finish(0)


def test_another_machines_directions_are_noticed(
    make_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_llama()
    plan = plan_of(folder)
    monkeypatch.setattr("fedcore.subspaces.directions._DOMAIN", b"something else")
    with pytest.raises(ExactnessError, match="projection differs"):
        Node(folder, tmp_path / "a", plan)
    assert direction(0, 0, plan.model_schema.layers[0]).any()
