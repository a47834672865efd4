# SPDX-License-Identifier: Apache-2.0
"""Split learning against plain transformers: what the front sends, what the back makes of it, and how it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from method_runs import CPU, HEAD_TASK, WHOLE, Run, values_of
from torch import Tensor, nn
from transformers import AutoModel

from coordinator.run.model import GlobalModel
from coordinator.store.ledger import UpdateRow
from edge_client.worker.architecture.cut import put_out
from edge_client.worker.data.batches import portions
from edge_client.worker.data.tasks import Encoded, batches, outputs
from edge_client.worker.methods.split import SplitBack, SplitFront
from edge_client.worker.model.varlen import leave_padding_out
from edge_client.worker.programs import back
from edge_client.worker.programs.back import _Texts
from edge_client.worker.programs.files import worked
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.round import learning_rate_factor
from edge_client.worker.train.trainer import Hooks
from fedcore.config.channel import ChannelSection
from fedcore.device.memoryplan import MemoryPlan
from fedcore.errors import ConfigError, DataError
from fedcore.methods.split import SplitSettings
from fedcore.round.training.split import ACTIVATION_UNIT, TARGET_UNIT
from fedcore.weights.quantise import dequantise_weight, quantise_weight
from tests.contract.reference import near
from tests.edge_client.worker.answering.two_parts import two_parts

LAYERS, FRONT = 3, 1


def settings(**keys: Any) -> SplitSettings:
    small = {"front": FRONT, "tokens": 1400, "bits": 16, "steps": 8, "interval_steps": 2, "batch_size": 4}
    return SplitSettings(**{**small, "learning_rate": 1e-2, **keys})


@pytest.fixture
def run(make_llama: Callable[..., Path], tmp_path: Path) -> Run:
    return Run(settings(), make_llama(layers=LAYERS, dtype="float32"), tmp_path)


def base_of(run: Run) -> Any:
    """The backbone as transformers has it, of dequantised weights."""
    model = AutoModel.from_pretrained(run.folder, dtype=torch.float32)
    for layer in run.schema.layers:
        weight = model.get_submodule(layer.name.removeprefix("model.")).weight
        weight.data = torch.from_numpy(dequantise_weight(*quantise_weight(weight.detach().numpy())))
    return model


def sent(run: Run, path: Path) -> list[tuple[Tensor, int]]:
    """Each text's activations and label, from an update's own definition."""
    values = values_of(path)
    rows = np.concatenate([values[f"/activations/{number}"] for number in range(len(values) - 1)]) * ACTIVATION_UNIT
    marks, targets = values["/texts"]
    begins = np.flatnonzero(marks == 1)
    ends = [*begins[1:], np.count_nonzero(marks)]
    assert not rows[ends[-1] :].any() and not marks[ends[-1] :].any()
    return [
        (torch.from_numpy(rows[start:end]), int(targets[start] * TARGET_UNIT))
        for start, end in zip(begins, ends, strict=True)
    ]


def by_hand(base: Any, hidden: Tensor) -> Tensor:
    """What the blocks behind the front and the last norm make of one text's activations (t, n): its last token's."""
    places = torch.arange(len(hidden))[None]
    hidden, turned = hidden[None], base.rotary_emb(hidden[None], places)
    for block in base.layers[FRONT:]:
        hidden = block(hidden, position_ids=places, position_embeddings=turned)
    found: Tensor = base.norm(hidden)[0, -1]
    return found


def test_the_front_sends_what_transformers_has_there(run: Run) -> None:
    run.train("a", run.replica("a"), 0)
    base, rows = base_of(run), sorted(run.examples(0), key=lambda one: len(one.ids))
    found = sent(run, run.own / "a-1.bin")
    wanted = []
    for row in rows:
        with torch.no_grad():
            hidden = base(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states[FRONT][0]
        wanted.append((hidden, row.target))
    assert sorted(label for _, label in found) == sorted(int(str(label)) for _, label in wanted)
    for hidden, label in found:
        off = [
            float((hidden - other).abs().max()) for other, own in wanted if own == label and len(other) == len(hidden)
        ]
        assert min(off) < 1e-4 * float(hidden.abs().max())


def order_of(run: Run, **numbers: int) -> Any:
    """The work of a round in which nodes `a` and `b` took part."""
    updates = [run.train(name, run.replica(name), number) for name, number in (numbers or {"a": 0, "b": 1}).items()]
    rows = [UpdateRow("", str(one.path.relative_to(run.own)), 1, one.header) for one in updates]
    order = run.model.order(run.plan(1), rows)
    assert order is not None
    return order


def test_front_and_back_are_the_whole_model(run: Run, tmp_path: Path) -> None:
    command = order_of(run).command
    plan = msgspec.structs.replace(command.plan, training=command.plan.training.worked)
    replica = Replica(plan, run.folder, tmp_path / "back", CPU, torch.float32)
    half = replica.half
    assert isinstance(half, SplitBack)
    texts = _Texts(command, tmp_path / "activations.bin")
    rows = texts.rows(replica.model)
    put_out(half.last, texts.given)
    texts.see(rows)
    with torch.no_grad():
        said = outputs(replica.model, rows, replica.model.pad_id, CPU)
    whole, wanted, labels = run.replica("whole"), list[Tensor](), list[Any]()
    for number, name in enumerate(("a", "b")):
        front = whole.half
        assert isinstance(front, SplitFront)
        taken = front.taken(run.examples(number), run.plan(1), name)
        with torch.no_grad():
            wanted += [outputs(whole.model, [row], whole.model.pad_id, CPU) for row in taken]
        labels += [row.target for row in taken]
    assert [row.target for row in rows] == labels
    assert torch.allclose(said, torch.cat(wanted), atol=2e-4 * float(said.abs().max()))


def test_training_the_back_is_plain_training_on_the_same_activations(run: Run) -> None:
    command = order_of(run).command
    said = worked(command)
    found, base = values_of(Path(command.path)), base_of(run)
    texts = [one for name in ("a", "b") for one in sent(run, run.own / f"{name}-1.bin")]
    head = nn.Parameter(torch.from_numpy(run.replica("start").start_values()["score.weight"]))
    first = head.detach().clone()
    names = [layer.name for layer in run.schema.layers if int(layer.name.split(".")[2]) >= FRONT]
    weights = {name: base.get_submodule(name.removeprefix("model.")).weight for name in names}
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    adam = torch.optim.Adam([{"params": list(weights.values())}, {"params": [head]}])
    stream = batches([Encoded((number,), None, 0) for number in range(len(texts))], 4, 5, 1, "work")
    losses = []
    for step in range(8):
        for group, rate in zip(adam.param_groups, (1e-2, 2e-3), strict=True):
            group["lr"] = rate * learning_rate_factor(step, 8)
        adam.zero_grad()
        chosen = [texts[row.ids[0]] for row in next(stream)]
        logits = torch.stack([by_hand(base, hidden) @ head.T for hidden, _ in chosen])
        loss = nn.functional.cross_entropy(logits, torch.tensor([label for _, label in chosen]))
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert said.loss == pytest.approx(sum(losses) / 8, rel=1e-3)
    assert found.keys() == {*names, "score.weight"}
    for name, weight in weights.items():
        assert near(found[name], (weight.detach() - start[name]).numpy())
    assert near(found["score.weight"], (head.detach() - first).numpy())


def test_the_work_ends_the_same_after_a_kill_and_whatever_memory_there_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = order_of(run).command
    worked(command)
    whole, steps, last = values_of(Path(command.path)), list[int](), 5

    def report(step: int, *_: object) -> None:
        steps.append(step)
        if step == last:
            raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(back, "Hooks", lambda **hooks: Hooks(report, **hooks))
        with pytest.raises(SystemExit):
            worked(command)
        last = 0
        worked(command)
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    again = values_of(Path(command.path))
    assert whole.keys() == again.keys() and all(np.array_equal(whole[name], again[name]) for name in whole)
    with monkeypatch.context() as patched:
        patched.setattr(back, "_memory_steps", lambda plan: (MemoryPlan(micro_batch_size=1, checkpointing=True),))
        worked(command)
    small = values_of(Path(command.path))
    assert all(near(whole[name], small[name]) for name in whole)


def test_a_node_sends_its_texts_portion_by_portion(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    run = Run(settings(tokens=200), make_llama(layers=2), tmp_path)
    replica, rows = run.replica("a"), run.examples(0)
    half = replica.half
    assert isinstance(half, SplitFront)
    plans = [msgspec.structs.replace(run.plan(1), round=number) for number in range(1, 6)]
    taken = [half.taken(rows, plan, "a") for plan in plans]
    whole = portions(rows, 200, 5, "a")
    assert len(whole) == 3 and all(sum(len(one.ids) for one in some) <= 200 for some in taken)
    assert sorted(one.ids for some in taken[:3] for one in some) == sorted(one.ids for one in rows)
    assert taken[3] == taken[0] and taken[4] == taken[1], "and then from the beginning"
    assert {one.ids for one in half.taken(rows, plans[0], "b")} != {one.ids for one in taken[0]}
    assert run.train("a", replica, 0).header.examples == len(taken[0])
    with pytest.raises(DataError, match="no text has 5 tokens or fewer"):
        portions(rows, 5)


def test_activations_come_over_the_channel_and_embeddings_do_not(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder, found = make_llama(layers=2), {}
    for name, channel in (("clean", None), ("over", ChannelSection(error=0.25))):
        run = Run(settings(), folder, tmp_path / name)
        run.model = GlobalModel(replace(run.learning, channel=channel), run.keeping, 0)
        memories = {"a": WHOLE, "again": WHOLE, "small": MemoryPlan(micro_batch_size=3)}
        for node in memories if channel else ("a",):
            trainer, _ = run.trainer("a", run.replica(node), run.examples(0))
            trainer.train(run.plan(1), (memories[node],), run.own / "a-1.bin")
            found[name, node] = sent(run, run.own / "a-1.bin")
    clean, over = (torch.cat([hidden for hidden, _ in found[name, "a"]]) for name in ("clean", "over"))
    shares = (over - clean).square().mean(1) / clean.square().mean(1)
    assert float(shares.mean()) == pytest.approx(0.25, rel=0.05)
    same = torch.cat([hidden for hidden, _ in found["over", "again"]])
    assert torch.equal(over, same), "the same noise, drawn again"
    assert torch.allclose(over, torch.cat([hidden for hidden, _ in found["over", "small"]]), atol=1e-3)


@pytest.mark.slow
def test_noise_in_training_is_the_backs_own(run: Run, tmp_path: Path) -> None:
    command, found = order_of(run).command, []
    for noise in (0.0, 1.0, 1.0):
        training = msgspec.structs.replace(command.plan.training, noise=noise)
        plan = msgspec.structs.replace(command.plan, training=training)
        said = worked(msgspec.structs.replace(command, plan=plan, key=f"{noise}"))
        found.append((said.loss, values_of(Path(command.path))))
    assert found[0][0] != found[1][0] == found[2][0]
    name = "score.weight"
    assert np.array_equal(found[1][1][name], found[2][1][name])
    assert not np.array_equal(found[0][1][name], found[1][1][name])


def test_who_may_weigh_less_has_fewer_texts_taken(run: Run, tmp_path: Path) -> None:
    command = order_of(run).command
    parts = tuple(
        msgspec.structs.replace(part, examples=count) for part, count in zip(command.parts, (10, 99), strict=True)
    )
    texts = _Texts(msgspec.structs.replace(command, parts=parts), tmp_path / "activations.bin")
    replica = run.replica("a")
    assert len(texts.rows(replica.model)) == 10 + len(run.examples(1))


def test_a_front_that_leaves_no_block_is_refused(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.front: 2 blocks on a node.*none is left to train \(lower it to 1"):
        Run(settings(front=2), make_llama(layers=2), tmp_path)


def test_texts_end_to_end_have_the_activations_that_they_have_with_padding(tmp_path: Path) -> None:
    folder = two_parts("bert", tmp_path)[1]
    task = msgspec.structs.replace(HEAD_TASK, pooling="mean")
    run = Run(settings(front=2), folder, tmp_path / "run", of_task=task)
    rows = [Encoded(tuple(range(4, 5 + size)), (0,) * (size + 1), size % 3) for size in (2, 9, 5, 14)]
    replica, found = run.replica("a"), []
    half = replica.half
    assert isinstance(half, SplitFront)
    for end_to_end in (False, True):
        assert leave_padding_out(replica.model, CPU) if end_to_end else True
        half.open(run.plan(1), "a", 0)
        half.gather(rows, task, replica.model.pad_id, CPU, first=True)
        half.measure(0, lambda: 0.0)
        found.append(dict(half.changes()))
    assert replica.model.padding.end_to_end and np.array_equal(found[0]["/texts"], found[1]["/texts"])
    one, other = (values["/activations/0"] for values in found)
    assert one.any() and np.abs(one - other).max() < 1e-3 * np.abs(one).max()
