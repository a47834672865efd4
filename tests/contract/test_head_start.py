# SPDX-License-Identifier: Apache-2.0
"""A head from sums, and then another method's rounds: every replica stays the same across the change, whenever it comes
and wherever it was killed, and the head is that of all rows at one place, whatever labels each node has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from method_runs import CPU, HEAD_TASK, METHODS, WHOLE, Run, examples, values_of

from edge_client.worker.data.tasks import Encoded, outputs
from edge_client.worker.methods.fed3r import Fed3R
from edge_client.worker.trace.footprint import footprint
from edge_client.worker.train.replica import Replica
from fedcore.config.sections import HeadSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ExactnessError
from fedcore.methods import server_half
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.interface import MethodSettings
from fedcore.model.update import WeightedUpdate
from fedcore.numbers.ridge import Moments, ridge_head
from fedcore.round.plan import Plan
from fedcore.round.training import HeadTraining

RIDGE = HeadSection(start="ridge", rates=1.0)
# What is merged, what has no seeds, what keeps factors, what is one row for all layers, what stands beside them.
FOLLOWING = ("fedkrso", "fedavg", "fedit", "flora", "fedkseed", "fedtt+")


def settings_of(name: str, **changes: Any) -> MethodSettings:
    kind: Any = next(kind for kind in METHODS if kind.__struct_config__.tag == name)
    return kind(steps=4, interval_steps=2, batch_size=4, learning_rate=1e-2, bits=16, **changes)  # type: ignore[no-any-return]


@pytest.fixture(
    params=[
        pytest.param(one, marks=() if one in ("fedkrso", "fedavg", "fedkseed") else pytest.mark.slow)
        for one in FOLLOWING
    ]
)
def run(request: pytest.FixtureRequest, make_llama: Callable[..., Path], tmp_path: Path) -> Run:
    return Run(settings_of(request.param), make_llama(), tmp_path, head=RIDGE)


def test_replicas_are_the_same_across_the_change_of_phase(run: Run) -> None:
    nodes = {name: run.replica(name) for name in ("a", "b")}
    for server_round in (1, 2, 3):
        assert isinstance(run.plan(server_round).training, HeadTraining) == (server_round == 1)
        updates = [
            run.train(name, replica, number, server_round) for number, (name, replica) in enumerate(nodes.items())
        ]
        run.close(server_round, updates[::-1])
        if server_round == 1:
            changed = {name for name, entry in run.published[1].entries.items() if entry.q.any()}
            assert changed == {tensor.name for tensor in run.schema.tensors}, "the head, and nothing of a layer"
        for replica in nodes.values():
            run.adopt(replica, server_round, whole=server_round == 1)
    # One that was loaded for the head's round and away for the next, one that comes new, one that starts again.
    absent, late, restarted = run.replica("absent"), run.replica("late", 3), run.replica("a", 4)
    for replica in (absent, late):
        for version in (1, 2, 3) if run.settings.merges_every else (3,):
            run.adopt(replica, version, whole=True)
    everybody = (nodes["b"], absent, late, restarted)
    assert {replica.digest() for replica in everybody} == {run.digests[3]}
    # Also one that was loaded for the head's round, as the process that measures is, computes with what layers learned.
    token = torch.arange(3, 20)[None]
    with torch.no_grad():
        said = [replica.model.module(input_ids=token).logits for replica in everybody]
    assert all(torch.equal(one, said[0]) for one in said)
    plan = run.plan(4)
    for replica in everybody:
        replica.open(plan)
    assert len({replica.digest() for replica in everybody}) == 1
    updates = [run.train("a", replica, 0, 4) for replica in everybody]
    said = [values_of(update.path) for update in updates]
    assert all(np.array_equal(one[name], said[0][name]) for one in said for name in said[0])
    assert said[0].keys() == plan.training.update_shapes(run.schema).keys(), "the method's own update"


def test_what_follows_knows_of_no_round_before_its_own(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    settings = settings_of("fedkrso", learning_rate_decay=0.5, schedule="fresh", refresh_every=2)
    plain, run = (
        Run(settings, make_llama(), tmp_path / name, head=head)
        for name, head in (("plain", HeadSection()), ("head", RIDGE))
    )
    for server_round in (1, 2, 3, 4):
        assert run.half.training(server_round + 1, 5) == plain.half.training(server_round, 5)
    slower = server_half(settings, head=HeadSection(start="ridge", rates=0.25)).training(3, 5)
    assert slower.learning_rate == run.half.training(3, 5).learning_rate / 4
    assert slower.tensor_learning_rate == run.half.training(3, 5).tensor_learning_rate / 4
    first = run.half.training(1, 5)
    assert isinstance(first, HeadTraining) and first.then == plain.half.training(1, 5) == first.learns
    assert first.seeds == first.then.seeds and first.at(1).seeds == first.then.at(1).seeds
    # As a plan, through the wire's encoding.
    plan = run.plan(1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan


@pytest.mark.parametrize(
    "settings",
    [
        settings_of("fedkrso", learning_rate_decay=0.5, schedule="fresh", refresh_every=2),
        pytest.param(settings_of("fedavg"), marks=pytest.mark.slow),
        pytest.param(settings_of("fedit"), marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings.name,
)
def test_heads_again_stand_between_the_method_s_rounds_and_change_nothing_of_them(
    settings: MethodSettings, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    again = HeadSection(start="ridge", rates=1.0, again=2)
    run = Run(settings, make_llama(), tmp_path, head=again)
    plain = server_half(settings)
    trained = [run.half.training(number, 5) for number in range(1, 8)]
    assert [isinstance(one, HeadTraining) for one in trained] == [True, False, False, True, False, False, True]
    own = [one for one in trained if not isinstance(one, HeadTraining)]
    assert own == [plain.training(number, 5) for number in (1, 2, 3, 4)]
    # What is merged after the head's round is merged by the round behind it.
    assert [one.generation for one in trained[3::3]] == [one.generation for one in trained[2:6:3]]
    nodes, head = {"a": run.replica("a"), "b": run.replica("b")}, {tensor.name for tensor in run.schema.tensors}
    for server_round in range(1, 8):
        updates = [run.train(name, one, number, server_round) for number, (name, one) in enumerate(nodes.items())]
        before = {name: value.copy() for name, value in run.state.sums.items()}
        run.close(server_round, updates)
        changed = {name for name, value in run.state.sums.items() if not np.array_equal(value, before[name])}
        assert changed <= head if isinstance(trained[server_round - 1], HeadTraining) else changed > head
        for replica in nodes.values():
            run.adopt(replica, server_round, whole=server_round == 1)
        if server_round == 2:
            # Loaded for a round of the method, and there for a head's.
            late = nodes["late"] = run.replica("late", 3)
            for version in (1, 2) if settings.merges_every else (2,):
                run.adopt(late, version, whole=True)
    assert len(nodes) == 3 and {one.digest() for one in nodes.values()} == {run.digests[7]}


def _one_label_each(label: int) -> list[Encoded]:
    found = [example for example in examples(2, HEAD_TASK) if example.target == label]
    return found + [_varied(example, 5 + label) for example in found]


def _varied(example: Encoded, step: int) -> Encoded:
    """Another text with the same label."""
    return Encoded(tuple((token * step) % 200 + 3 for token in example.ids), None, example.target)


def _close(run: Run, parts: list[list[Encoded]]) -> None:
    rows = []
    for number, part in enumerate(parts):
        name, plan = f"n{number}", run.plan(1)
        header, _ = run.trainer(name, run.replica(name), part)[0].train(plan, (WHOLE,), run.own / f"{name}.bin")
        rows.append(WeightedUpdate(run.own / f"{name}.bin", header, header.examples))
    run.close(1, rows)


def test_a_head_is_that_of_all_rows_also_with_one_label_a_node(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder, parts = make_llama(), [_one_label_each(label) for label in range(3)]
    apart = Run(Fed3RSettings(batch_size=4), folder, tmp_path / "apart")
    together = Run(Fed3RSettings(batch_size=4), folder, tmp_path / "together")
    _close(apart, parts)
    _close(together, [[example for part in parts for example in part]])
    (name,) = [tensor.name for tensor in apart.schema.tensors]
    one, other = (np.ldexp(run.state.sums[name].astype(np.float64), -32) for run in (apart, together))
    assert np.abs(one - other).max() < 1e-3 * np.abs(other).max()
    # And that is the head of a plain float64 computation on the rows.
    replica = together.replica("reference")
    rows = [example for part in parts for example in part]
    replica.model.module.score = torch.nn.Identity()
    with torch.no_grad():
        x = torch.cat([outputs(replica.model, [row], 0, CPU).double() for row in rows]).numpy()
    y = np.eye(3)[[row.target for row in rows]]
    vectors = np.concatenate([x, np.ones((len(x), 1)), y], axis=1)
    wanted = ridge_head(Moments(vectors.T @ vectors / len(x), x.shape[1], len(x)), "classes", bias=False).weight
    found = one + together.replica("start").start_values()[name]
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_a_head_fits_better_than_what_labels_shares_say(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(Fed3RSettings(batch_size=4), make_llama(), tmp_path)
    parts = [_one_label_each(label) for label in range(3)]
    _close(run, parts)
    replica = run.replica("a")
    run.adopt(replica, 1, whole=True)
    rows = [example for part in parts for example in part]
    with torch.no_grad():
        said = torch.cat([outputs(replica.model, [row], 0, CPU) for row in rows])
    labels = torch.tensor([row.target for row in rows])
    assert float(torch.nn.functional.cross_entropy(said, labels)) < np.log(3)


def test_micro_batches_and_memory_that_ran_out_change_no_sum_beyond_rounding(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, found = run.plan(1), []
    for name, memory, fails in (("whole", 4, 0), ("small", 1, 0), ("short", 4, 3)):
        replica = run.replica(name)
        trainer = run.trainer(name, replica, run.examples(1))[0]
        half: Any = replica.half
        whole, calls = half.gather, [0]

        def gather(
            *args: Any, whole: Any = whole, calls: list[int] = calls, fails: int = fails, **kwargs: Any
        ) -> float:
            calls[0] += 1
            loss: float = whole(*args, **kwargs)
            if calls[0] == fails:
                # After what it found was kept.
                raise torch.OutOfMemoryError
            return loss

        monkeypatch.setattr(half, "gather", gather)
        steps = (MemoryPlan(micro_batch_size=memory), MemoryPlan(micro_batch_size=1))
        trainer.train(plan, steps, run.own / f"{name}.bin")
        found.append(values_of(run.own / f"{name}.bin")["/moments"])
    assert np.allclose(found[0], found[1], atol=1e-5) and np.allclose(found[0], found[2], atol=1e-5)
    assert found[0].any()


def test_a_killed_worker_takes_its_sums_up_again_bit_for_bit(run: Run) -> None:
    plan = run.plan(1)
    # Shorter intervals than a head start's own, so that a few rows make some.
    plan = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, interval_steps=2))
    run.trainer("a", run.replica("whole"), run.examples(1))[0].train(plan, (WHOLE,), run.own / "whole.bin")
    with pytest.raises(SystemExit):
        run.trainer("a", run.replica("a"), run.examples(1), stop=5)[0].train(plan, (WHOLE,), run.own / "never.bin")
    trainer, done = run.trainer("a", run.replica("a"), run.examples(1))
    trainer.train(plan, (WHOLE,), run.own / "resumed.bin")
    # 34 rows are nine batches of four, the last one with two.
    assert done == [5, 6, 7, 8, 9]
    one, other = (values_of(run.own / f"{name}.bin")["/moments"] for name in ("whole", "resumed"))
    assert np.array_equal(one, other) and one.any()


def test_a_replica_goes_over_to_a_head_s_round_of_its_own_method_alone(run: Run) -> None:
    run.close(1, [run.train("a", run.replica("a"), 0)])
    later: Replica = run.replica("b", 2)
    run.adopt(later, 1, whole=True)
    plan, back = run.plan(2), run.plan(1).training
    other = server_half(settings_of("fedavg" if run.settings.name != "fedavg" else "fedkrso"), head=RIDGE)
    for training in (other.training(2, 5), other.training(1, 5)):
        sums = ("0" * 16,) * len(run.schema.layers) if training.seeds else ()
        foreign = msgspec.structs.replace(plan, training=training, checksums=sums)
        with pytest.raises(ExactnessError, match="was loaded for rounds of"):
            later.open(foreign)
    later.open(msgspec.structs.replace(plan, training=back))
    assert isinstance(later.half, Fed3R) and later.half.then is not None


def test_bytes_and_memory_are_foreseen(run: Run) -> None:
    plan = run.plan(1)
    update = run.train("a", run.replica("a"), 1)
    shapes = plan.training.update_shapes(run.schema)
    foreseen = sum(plan.training.coding(name).most_bytes(m * n) for name, (m, n) in shapes.items())
    assert abs(update.path.stat().st_size / foreseen - 1) < 0.1
    # The plan for memory is that of the rounds that follow, with the sums beside.
    head, then = (
        footprint(run.folder, run.schema, run.task, "int8", training, longest=24)
        for training in (plan.training, plan.training.learns)
    )
    half: Any = run.replica("c").half
    half.open(plan, "c", 0)
    sums = sum(block.numel() * block.element_size() for block in half._sums.blocks)
    assert head.subspaces_bytes - then.subspaces_bytes == sums
    assert head.rank_bytes == then.rank_bytes and head.trained_bytes == then.trained_bytes
    largest = max(point.activations_bytes for point in then.points)
    assert max(point.activations_bytes for point in head.points) == largest
