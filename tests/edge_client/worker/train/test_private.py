# SPDX-License-Identifier: Apache-2.0
"""Gradients of single examples are those that torch gives of each alone; they are cut, and hidden by noise that nobody
can draw again."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from edge_client.process.measuring import Request
from edge_client.worker.data.tasks import Encoded, summed_loss
from edge_client.worker.methods.fedkrso.half import FedKRSO
from edge_client.worker.methods.perexample import ExampleGradients
from edge_client.worker.programs.measure import local_plan
from edge_client.worker.trace.footprint import footprint
from edge_client.worker.train.private import PrivateSteps, poisson_batches, private_steps
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Trainer, set_checkpointing
from fedcore.config.sections import TaskSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ConfigError, DataError, WorkerError
from fedcore.methods.fed3r import Fed3R, Fed3RSettings
from fedcore.numbers.records import read_records
from fedcore.round.plan import Plan
from fedcore.round.training import PrivateTraining

CPU = torch.device("cpu")
TASK = TaskSection(kind="text-classification", labels=("a", "b"), max_length=24)
WHOLE = MemoryPlan(micro_batch_size=4)
PRIVACY = PrivateTraining(level="example", clip=0.5, noise_multiplier=1e-9, delta=1e-3, least_examples=4)
LENGTHS = (10, 3, 17, 10, 24)


@pytest.fixture(params=["minilm", "llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "llama":
        made: Path = request.getfixturevalue("make_llama")()
        return made
    found: Path = request.getfixturevalue("minilm_folder")
    return found


def examples(replica: Replica, rows: int = len(LENGTHS)) -> list[Encoded]:
    types = replica.model.takes_types
    return [
        Encoded(tuple((7 * i + 3 * j) % 200 + 3 for j in range(size)), (0,) * size if types else None, i % 2)
        for i, size in ((i, LENGTHS[i % len(LENGTHS)]) for i in range(rows))
    ]


def plan_of(folder: Path, privacy: PrivateTraining = PRIVACY, **changes: Any) -> Plan:
    request = Request(model_folder="", task=TASK, batch_size=4, length=24, memory=WHOLE, rank=4, pool=3)
    plan = local_plan(folder, TASK, request)
    changed = {"intervals": 2, "interval_steps": 2, "learning_rate": 1e-2, "privacy": privacy, **changes}
    return msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, **changed))


def opened(folder: Path, own: Path, privacy: PrivateTraining = PRIVACY) -> tuple[Replica, FedKRSO, PrivateSteps]:
    """A replica in its first interval, whose factors are not zero."""
    torch.set_num_threads(1)
    plan = plan_of(folder, privacy)
    replica = Replica(plan, folder, own, CPU, torch.float32)
    replica.open(plan)
    half = replica.half
    assert isinstance(half, FedKRSO)
    steps = private_steps(replica.model, half, plan, 100)
    assert steps is not None
    half.open(plan, "n", 4)
    half.begin(0)
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in replica.layers.values():
            assert layer.factor is not None
            layer.factor.copy_(torch.randn(layer.factor.shape, generator=chance) * 0.02)
    return replica, half, steps


def alone(replica: Replica, half: FedKRSO, batch: list[Encoded]) -> dict[str, Tensor]:
    """Of each example by itself, as autograd gives it where nobody watches: by name (examples, ...)."""
    assert half.examples is not None
    parameters = dict(half.examples.parameters())
    half.examples.end()
    each: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for one in batch:
        for parameter in parameters.values():
            parameter.grad = None
        summed_loss(replica.model, [one], TASK, replica.model.pad_id, CPU).backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            each[name].append(parameter.grad.clone())
    return {name: torch.stack(found) for name, found in each.items()}


def cut(each: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """The sum of examples' gradients, each scaled down to a norm by itself."""
    norms = sum((own.flatten(1).double() ** 2).sum(dim=1) for own in each.values()) ** 0.5
    factors = torch.tensor([min(1.0, clip / float(norm)) for norm in norms])
    return {name: torch.tensordot(factors, own, dims=1) for name, own in each.items()}


@pytest.mark.parametrize(("room_tokens", "checkpointing"), [(0, False), (10_000, False), (10_000, True)])
def test_gradients_by_example_are_those_of_each_alone(
    folder: Path, tmp_path: Path, room_tokens: int, checkpointing: bool
) -> None:
    replica, half, _ = opened(folder, tmp_path)
    replica.model.padding.room_tokens = room_tokens
    set_checkpointing(replica.model.module, checkpointing)
    replica.model.module.train(checkpointing)
    batch = examples(replica)
    # What an earlier pass left does not count.
    for some in (batch[:2], batch):
        summed_loss(replica.model, some, TASK, replica.model.pad_id, CPU).backward()
    assert half.examples is not None
    found = half.examples.found()
    expected = alone(replica, half, batch)
    assert found.keys() == expected.keys() and len(found) > len(replica.layers)
    for name, own in found.items():
        scale = float(expected[name].abs().max())
        assert torch.allclose(own, expected[name], rtol=1e-3, atol=2e-4 * scale + 1e-9), name


def test_a_step_is_the_sum_of_gradients_that_were_cut_one_by_one(folder: Path, tmp_path: Path) -> None:
    replica, half, steps = opened(folder, tmp_path)
    batch = examples(replica)
    steps.begin()
    for part in (batch[:3], batch[3:]):
        steps.micro_batch(part, replica.model.pad_id, CPU)
    loss = steps.finish()
    assert half.examples is not None
    parameters = dict(half.examples.parameters())
    found = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        plain = float(summed_loss(replica.model, batch, TASK, replica.model.pad_id, CPU)) / 4
    expected = cut(alone(replica, half, batch), 0.5 * math.sqrt(0.99))
    for name, total in expected.items():
        # By the batch size of the plan, four, though five examples came.
        assert torch.allclose(found[name], (total / 4).to(found[name].dtype), rtol=1e-3, atol=1e-6), name
    assert loss == pytest.approx(plain, rel=1e-4)
    whole = math.sqrt(sum(float(one.double().square().sum()) for one in found.values()))
    assert whole <= 5 * 0.5 / 4 * 1.0001


def test_noise_is_there_also_where_nothing_came(minilm_folder: Path, tmp_path: Path) -> None:
    replica, half, steps = opened(minilm_folder, tmp_path, msgspec.structs.replace(PRIVACY, noise_multiplier=2.0))
    steps.begin()
    losses = [steps.finish() for _ in range(200)]
    assert half.examples is not None
    gradients = [parameter.grad.flatten() for _, parameter in half.examples.parameters()]
    numbers = torch.cat(gradients)
    # Noise times clip, over the batch size.
    assert float(numbers.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert float(numbers.mean()) == pytest.approx(0, abs=0.01)
    assert np.std(losses) == pytest.approx(2.0 * 4.0 / 0.1 / 4, rel=0.25)
    del replica


def test_an_example_without_a_finite_gradient_counts_nothing(minilm_folder: Path, tmp_path: Path) -> None:
    replica, half, steps = opened(minilm_folder, tmp_path)
    assert half.examples is not None
    taken = half.examples.found

    def broken() -> dict[str, Tensor]:
        found = {name: own.clone() for name, own in taken().items()}
        next(iter(found.values()))[1, 0, 0] = float("nan")
        return found

    batch = examples(replica)[:2]
    half.examples.found = broken  # type: ignore[method-assign]
    steps.begin()
    steps.micro_batch(batch, 0, CPU)
    steps.finish()
    found = {name: parameter.grad.clone() for name, parameter in half.examples.parameters()}
    expected = cut(alone(replica, half, batch[:1]), 0.5 * math.sqrt(0.99))
    assert all(torch.allclose(found[name], expected[name] / 4, rtol=1e-3, atol=1e-6) for name in found)


def test_every_example_comes_by_a_coin_of_its_own() -> None:
    encoded = [Encoded((i + 3,), None, 0) for i in range(40)]
    drawn = list(islice(poisson_batches(encoded, 3, np.random.default_rng(5)), 3000))
    sizes = np.array([len(batch) for batch in drawn])
    # Binomial with 40 and 3/40, not 3 every time.
    assert sizes.mean() == pytest.approx(3, rel=0.05) and sizes.var() == pytest.approx(3 * (1 - 3 / 40), rel=0.1)
    assert (sizes == 0).any()
    counts = np.bincount([example.ids[0] - 3 for batch in drawn for example in batch], minlength=40)
    assert counts == pytest.approx(np.full(40, 3000 * 3 / 40), rel=0.35)
    # Two of them come together as often as chance has it.
    together = sum(any(e is encoded[0] for e in batch) and any(e is encoded[1] for e in batch) for batch in drawn)
    assert together < 40


def test_a_round_is_trained_once_and_two_nodes_with_the_same_texts_say_something_else(
    minilm_folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(minilm_folder, msgspec.structs.replace(PRIVACY, noise_multiplier=0.5))
    replica = Replica(plan, minilm_folder, tmp_path, CPU, torch.float32)
    encoded, updates = examples(replica, 12), []
    for node in ("a", "b"):
        trainer = Trainer(replica, encoded, tmp_path / "intervals", "r", node, 0, CPU)
        header, _ = trainer.train(plan, (WHOLE,), tmp_path / f"{node}.bin")
        assert math.isfinite(header.loss)
        updates.append({record.name: record.part.values() for record in read_records(tmp_path / f"{node}.bin")})
        with pytest.raises(WorkerError, match="round 1 was trained here before"):
            trainer.train(plan, (WHOLE,), tmp_path / "again.bin")
    assert not (tmp_path / "again.bin").exists()
    assert all((updates[0][name] != updates[1][name]).any() for name in updates[0])
    few = Trainer(replica, encoded[:3], tmp_path / "intervals", "r", "c", 0, CPU)
    with pytest.raises(DataError, match="3 examples are here, and what the job promises of privacy holds from 4 on"):
        few.train(plan, (WHOLE,), tmp_path / "few.bin")
    many = Trainer(replica, encoded * 100, tmp_path / "intervals", "r", "d", 0, CPU)
    with pytest.raises(DataError, match=r"a delta of 0.001 means nothing for 1200 examples"):
        many.train(plan, (WHOLE,), tmp_path / "many.bin")


def test_sums_for_a_head_are_hidden_row_by_row_and_told_once(minilm_folder: Path, tmp_path: Path) -> None:
    """One pass over the node's rows by the method that trains nothing: what it tells is hidden like gradients are."""
    plan = plan_of(minilm_folder)
    privacy = msgspec.structs.replace(PRIVACY, noise_multiplier=1.0, clip=1.5)
    training = msgspec.structs.replace(Fed3R(Fed3RSettings()).training(1, 5), privacy=privacy, batch_size=4)
    plan = msgspec.structs.replace(plan, training=training, checksums=())
    replica = Replica(plan, minilm_folder, tmp_path, CPU, torch.float32)
    encoded, found = examples(replica, 12), []
    for node in ("a", "b"):
        trainer = Trainer(replica, encoded, tmp_path / "intervals", "r", node, 0, CPU)
        header, _ = trainer.train(plan, (WHOLE,), tmp_path / f"{node}.bin")
        assert header.loss == 0.0 and header.examples == 12, "a loss has no noise, and is not told"
        found.append(next(iter(read_records(tmp_path / f"{node}.bin", kinds={"floats"}))).part.values())
        with pytest.raises(WorkerError, match="round 1 was trained here before"):
            trainer.train(plan, (WHOLE,), tmp_path / "again.bin")
    # The same rows: what differs is the noise of both, over 12 rows.
    assert (found[0] - found[1])[:, :-1].std() == pytest.approx(2**0.5 * 1.5 / 12, rel=0.1)
    few = Trainer(replica, encoded[:3], tmp_path / "intervals", "r", "c", 0, CPU)
    with pytest.raises(DataError, match="3 examples are here"):
        few.train(plan, (WHOLE,), tmp_path / "few.bin")


def test_what_is_no_linear_layer_cannot_be_trained_whole(minilm_folder: Path, tmp_path: Path) -> None:
    replica, _, _ = opened(minilm_folder, tmp_path)
    norm = next(p for name, p in replica.model.module.named_parameters() if name.endswith("LayerNorm.weight"))
    norm.requires_grad_(True)
    with pytest.raises(ConfigError, match="LayerNorm.weight is trained whole and of no linear layer"):
        ExampleGradients(replica.model)


def test_the_memory_plan_counts_gradients_of_all_examples_of_a_micro_batch(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_llama()
    plan = plan_of(folder, batch_size=8)
    peaks = []
    for training in (msgspec.structs.replace(plan.training, privacy=None), plan.training):
        found = footprint(folder, plan.model_schema, TASK, "int8", training, longest=24)
        points = {p.micro_batch_size: p for p in found.points if p.length == 24 and not p.checkpointing}
        peaks.append({size: p.activations_bytes + p.logits_bytes + p.working_bytes for size, p in points.items()})
    rows = sum(layer.rows for layer in plan.model_schema.layers)
    more = {size: peaks[1][size] - peaks[0][size] for size in peaks[0]}
    each = 4 * 4 * rows
    # All but what the pass has let go of by then, and that only grows less with the micro-batch.
    assert more[8] - more[4] > 2 * each and more[8] < 10 * each
