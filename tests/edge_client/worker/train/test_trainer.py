# SPDX-License-Identifier: Apache-2.0
"""Local training under memory plans: where weights lie, how batches are split and where a worker died leave no trace in
the update."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edge_client.process.measuring import Request
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.model.fused import fuse
from edge_client.worker.programs.measure import local_plan
from edge_client.worker.train.highwater import is_out_of_memory
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Hooks, Trainer
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import BudgetError
from fedcore.numbers.records import read_records
from fedcore.round.plan import Plan

CPU = torch.device("cpu")
CAUSAL = TaskSection(kind="causal-lm", max_length=24)
WHOLE = MemoryPlan(micro_batch_size=4)
EXAMPLES = [Encoded(tuple((5 * i + j) % 200 + 3 for j in range(10 + i)), None, None) for i in range(8)]


def plan_of(folder: Path, task: TaskSection = CAUSAL, **changes: Any) -> Plan:
    plan = local_plan(
        folder, task, Request(model_folder="", task=task, batch_size=4, length=24, memory=WHOLE, rank=4, pool=3)
    )
    changed = {"intervals": 4, "interval_steps": 2, "learning_rate": 1e-2, **changes}
    return msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, **changed))


class Node:
    """A worker's insides, without the process."""

    def __init__(
        self, folder: Path, own: Path, plan: Plan, *, mapped: bool = False, wanted: Callable[[], int] = lambda: 0
    ) -> None:
        torch.set_num_threads(1)
        self.plan, self.own = plan, own
        self.replica = Replica(plan, folder, own, CPU, torch.float32, mapped=mapped)
        fuse(self.replica.model.module)
        self.memory_steps: list[int] = []
        report = lambda done, steps, loss, memory_step: self.memory_steps.append(memory_step)  # noqa: E731
        self.trainer = Trainer(self.replica, EXAMPLES, own / "intervals", "r", "n", 0, CPU, Hooks(report, wanted))

    def update(self, *memory_steps: MemoryPlan) -> dict[str, np.ndarray[Any, Any]]:
        path = self.own / "update.bin"
        self.trainer.train(self.plan, memory_steps or (WHOLE,), path)
        return values_of(path)


@pytest.fixture
def folder(make_llama: Callable[..., Path]) -> Path:
    return make_llama()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Up to float rounding: Adam's first steps are signs of gradients, so compare directions."""
    a, b = (np.concatenate([u[name].ravel() for name in sorted(one)]) for u in (one, other))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) > 0.999


@pytest.mark.parametrize(("tied", "dtype"), [(False, "bfloat16"), (True, "bfloat16"), (False, "float32")])
def test_weights_on_disk_give_the_same_update_bit_for_bit(
    make_llama: Callable[..., Path], tmp_path: Path, tied: bool, dtype: str
) -> None:
    folder = make_llama("other", tied=tied, dtype=dtype)
    plan = plan_of(folder)
    resident, mapped = Node(folder, tmp_path / "a", plan), Node(folder, tmp_path / "b", plan, mapped=True)
    assert resident.replica.model.module.model.embed_tokens.weight.dtype == getattr(torch, dtype)
    head = mapped.replica.model.output_weight
    assert (
        head.mapped and head.weight.data_ptr() == mapped.replica.model.module.get_output_embeddings().weight.data_ptr()
    )
    assert (head.weight.data_ptr() == mapped.replica.model.module.model.embed_tokens.weight.data_ptr()) == tied
    assert same(resident.update(), mapped.update())


@pytest.mark.parametrize(
    "memory",
    [
        MemoryPlan(micro_batch_size=1),
        MemoryPlan(micro_batch_size=3, checkpointing=True),
        MemoryPlan(micro_batch_size=4, block_rows=16, allocator="tuned"),
        MemoryPlan(micro_batch_size=2, dequantised=True),
    ],
)
def test_the_plan_changes_nothing_beyond_rounding(folder: Path, tmp_path: Path, memory: MemoryPlan) -> None:
    plan = plan_of(folder)
    assert close(Node(folder, tmp_path / "a", plan).update(), Node(folder, tmp_path / "b", plan).update(memory))


def test_checkpointing_is_bit_equal(folder: Path, tmp_path: Path) -> None:
    plan, memory = plan_of(folder), MemoryPlan(micro_batch_size=4, checkpointing=True)
    assert same(Node(folder, tmp_path / "a", plan).update(), Node(folder, tmp_path / "b", plan).update(memory))


def test_finished_intervals_are_not_trained_again_and_the_update_is_bit_equal(
    minilm_folder: Path, tmp_path: Path
) -> None:
    task = TaskSection(kind="text-classification", labels=("a", "b"))
    plan = plan_of(minilm_folder, task)
    examples = [Encoded(e.ids, (0,) * len(e.ids), i % 2) for i, e in enumerate(EXAMPLES)]

    class Stop(Exception):
        pass

    def trainer(own: Path, stop_at: int) -> tuple[Trainer, list[int]]:
        replica = Replica(plan, minilm_folder, own, CPU, torch.float32)
        done: list[int] = []

        def report(step: int, *_: object) -> None:
            done.append(step)
            if step == stop_at:
                raise Stop

        return Trainer(replica, examples, own / "intervals", "r", "n", 0, CPU, Hooks(report)), done

    whole, _ = trainer(tmp_path / "a", 0)
    whole.train(plan, (WHOLE,), tmp_path / "whole.bin")
    # Dies in the middle of the third interval: two are finished.
    first, _ = trainer(tmp_path / "b", 5)
    with pytest.raises(Stop):
        first.train(plan, (WHOLE,), tmp_path / "never.bin")
    second, done = trainer(tmp_path / "b", 0)
    _, trained = second.train(plan, (WHOLE,), tmp_path / "resumed.bin")
    assert trained.restored == 2 and done == [5, 6, 7, 8]
    one, other = values_of(tmp_path / "whole.bin"), values_of(tmp_path / "resumed.bin")
    assert same(one, other)
    assert not list((tmp_path / "b" / "intervals").iterdir()), "nothing is kept once the update is written"


def values_of(update: Path) -> dict[str, Any]:
    return {record.name: record.part.values() for record in read_records(update)}


def test_intervals_of_another_round_are_not_taken(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder)
    node = Node(folder, tmp_path / "a", plan)
    first = node.update()
    other = plan_of(folder, learning_rate=2e-2)
    (tmp_path / "a" / "intervals" / "0.safetensors").write_bytes(b"torn")
    assert not same(first, Node(folder, tmp_path / "a", other).update())


def test_asked_to_step_down_the_next_micro_batch_does(folder: Path, tmp_path: Path) -> None:
    asked = 0
    plan = plan_of(folder)
    node = Node(folder, tmp_path / "a", plan, wanted=lambda: asked)

    def report(done: int, *rest: Any) -> None:
        nonlocal asked
        node.memory_steps.append(rest[2])
        asked = 1 if done == 3 else asked

    node.trainer._report = report

    dequantised = msgspec.structs.replace(WHOLE, dequantised=True)
    small = node.update(dequantised, MemoryPlan(micro_batch_size=1, checkpointing=True))
    assert node.memory_steps == [0, 0, 0, 1, 1, 1, 1, 1]
    assert close(small, Node(folder, tmp_path / "b", plan).update())
    assert not any(layer.dequantised.on for layer in node.replica.layers.values())


def test_a_failed_allocation_repeats_the_batch_one_memory_step_lower(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder)
    node = Node(folder, tmp_path / "a", plan)
    layer = next(iter(node.replica.layers.values()))
    product, calls = layer.product, 0

    def scarce(x: torch.Tensor, out: torch.Tensor, beta: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if x.shape[0] > 40 and calls > 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return product(x, out, beta)

    layer.product = scarce  # type: ignore[method-assign]
    got = node.update(WHOLE, MemoryPlan(micro_batch_size=2))
    assert node.memory_steps[:3] == [0, 0, 0] and node.memory_steps[-1] == 1
    assert close(got, Node(folder, tmp_path / "b", plan).update())


def test_memory_that_is_short_on_the_lowest_memory_step_is_said(folder: Path, tmp_path: Path) -> None:
    node = Node(folder, tmp_path / "a", plan_of(folder))

    def none(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    next(iter(node.replica.layers.values())).product = none  # type: ignore[method-assign]
    with pytest.raises(BudgetError, match="out of memory with the smallest plan: .*can't allocate memory"):
        node.update(WHOLE, MemoryPlan(micro_batch_size=1))


@pytest.mark.parametrize("memory", [WHOLE, MemoryPlan(micro_batch_size=4, dequantised=True)])
def test_an_interval_whose_end_a_disk_has_lost_is_trained_again(
    folder: Path, tmp_path: Path, memory: MemoryPlan
) -> None:
    plan = plan_of(folder)
    undisturbed = Node(folder, tmp_path / "a", plan).update(memory)
    stopped = Node(folder, tmp_path / "b", plan)
    stopped.trainer._report = lambda done, *rest: None if done < 5 else sys.exit()
    with pytest.raises(SystemExit):
        stopped.update(memory)
    path = tmp_path / "b" / "intervals" / "1.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        # The length is right, and zeros are where the last tensors were.
        file.truncate(size // 2)
        file.truncate(size)
    again = Node(folder, tmp_path / "b", plan)
    done: list[int] = []
    again.trainer._report = lambda step, *rest: done.append(step)
    assert same(undisturbed, again.update(memory))
    assert done == [3, 4, 5, 6, 7, 8], "one interval is whole"


def test_ranks_may_differ_between_intervals_of_a_round(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder)
    header, trained = Node(folder, tmp_path / "a", plan).trainer.train(
        plan, (MemoryPlan(micro_batch_size=4, rank=2),), tmp_path / "u.bin"
    )
    assert header.rank == 2


def test_out_of_memory_is_known_in_all_its_words() -> None:
    for words in (
        "CUDA out of memory",
        "can't allocate memory",
        "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
        "NvMapMemAlloc error 12",
    ):
        assert is_out_of_memory(RuntimeError(words))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.slow
def test_mapped_pages_are_given_back(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """In a process of its own: a pass over 100 MB of mapped weights leaves a few of them resident."""
    folder = make_llama("large", layers=8, width=1024, vocabulary=1000)
    program = f"""
import torch
from pathlib import Path
from edge_client.worker.train.highwater import begin_peak, peak_bytes, status_bytes
from edge_client.worker.model.loading import build, describe
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from fedcore.config.sections import TaskSection
torch.set_num_threads(1)
task, checkpoint = TaskSection(kind="causal-lm"), Checkpoint(Path({str(folder)!r}))
base = Base(checkpoint, describe(checkpoint, task), "int8", Path({str(tmp_path / "own")!r}))
base.store()
model = build(base, task, 0, torch.device("cpu"), torch.float32, mapped=True)
weights = sum(layer.base.q.numel() for layer in model.layers.values())
x = torch.ones(1, 4, dtype=torch.long)
with torch.no_grad():
    model.backbone(x)
    before = status_bytes("RssFile")
    model.backbone(x)
print(weights, status_bytes("RssFile") - before, status_bytes("RssFile"), sep=",")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=None)
    weights, grown, files = map(int, done.stdout.split(","))
    assert weights > 90_000_000 and grown < 5_000_000
    assert files < 180_000_000, "libraries alone"
