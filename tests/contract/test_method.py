# SPDX-License-Identifier: Apache-2.0
"""What every federated method keeps, whatever it trains: joining the table of methods is joining these tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch
from method_runs import CASES, METHODS, WHOLE, Case, Run, name_of, settings_of, values_of
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from coordinator.reports.export import export_model
from edge_client.worker.train.replica import Replica
from fedcore.errors import ConfigError, UpdateRefused
from fedcore.methods import server_half, settings_union
from fedcore.model.learned import layer_factors, layer_update
from fedcore.model.state import ExactState, PublishedState
from fedcore.model.update import check_update
from fedcore.registry import METHODS as REGISTRY
from fedcore.registry import resolve
from fedcore.round.training import BlockTraining, FactorTraining, SubspaceTraining, training_union
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import LayerSpec

# FedIT averages each factor by itself; with FedSA-LoRA and SpaFL there is no model that all share; with split learning
# there are no participants' models.
NOT_EXACT = ("fedit", "fedsa-lora", "spafl", "split")


@pytest.fixture(params=CASES, ids=name_of)
def run(request: pytest.FixtureRequest, make_llama: Callable[..., Path], tmp_path: Path) -> Run:
    return Run(settings_of(request.param), make_llama(), tmp_path)


def test_every_method_has_all_of_its_parts() -> None:
    assert set(get_args(settings_union())) == set(METHODS)
    for name, method in REGISTRY.items():
        settings = resolve(method.settings)
        assert settings().name == name
        assert type(server_half(settings()).training(1, 0)) is method.training
        assert callable(resolve(method.client_half))
    assert set(get_args(training_union())) == {method.training for _, method in REGISTRY.items()}


def test_every_replica_is_the_same_also_one_that_was_absent(run: Run) -> None:
    nodes = {name: run.replica(name) for name in ("a", "b")}
    for server_round in (1, 2):
        updates = [
            run.train(name, replica, number, server_round) for number, (name, replica) in enumerate(nodes.items())
        ]
        run.close(server_round, updates[::-1])
        for replica in nodes.values():
            run.adopt(replica, server_round, whole=server_round == 1)
    absent = run.replica("absent")
    if run.settings.merges_every:
        run.adopt(absent, 1, whole=True)
    run.adopt(absent, 2, whole=True)
    restarted = run.replica("a", 3)
    assert {replica.digest() for replica in (*nodes.values(), absent, restarted)} == {run.digests[2]}
    token = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits = [replica.model.backbone(token).last_hidden_state for replica in (nodes["b"], absent, restarted)]
    if run.plan(1).training.shares_model:
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert any(entry.q.any() for entry in absent.state.entries.values()), "something was learned"
    plan, replicas = run.plan(3), (nodes["b"], absent, restarted)
    for replica in replicas:
        replica.open(plan)
    assert len({replica.digest() for replica in replicas}) == 1
    assert absent.base.digest() == run.base.digest() == plan.base_digest


def test_a_snapshot_stands_for_the_merges_that_a_node_missed(run: Run) -> None:
    if not run.settings.merges_every:
        pytest.skip("a method that never merges")
    always, absent = run.replica("a"), run.replica("absent")
    for server_round in (1, 2):
        run.close(server_round, [run.train("a", always, 0, server_round)])
        run.adopt(always, server_round, whole=True)
    run.adopt_snapshot(absent, 3)
    always.open(run.plan(3))
    assert absent.base.generation == 2 and absent.digest() == always.digest()
    updates = [run.train(name, replica, 0, 3) for name, replica in (("a", always), ("a", absent))]
    assert updates[0].header.loss == updates[1].header.loss


def test_a_killed_worker_ends_with_the_same_update(run: Run) -> None:
    plan = run.plan(1)
    run.trainer("a", run.replica("whole"), run.examples(0))[0].train(plan, (WHOLE,), run.own / "whole.bin")
    with pytest.raises(SystemExit):
        run.trainer("a", run.replica("a"), run.examples(0), stop=5)[0].train(plan, (WHOLE,), run.own / "never.bin")
    trainer, done = run.trainer("a", run.replica("a"), run.examples(0))
    trainer.train(plan, (WHOLE,), run.own / "resumed.bin")
    assert done == [5, 6, 7, 8]
    one, other = values_of(run.own / "whole.bin"), values_of(run.own / "resumed.bin")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert any(value.any() for value in one.values())


def test_an_update_says_what_the_plan_asks_for_and_nothing_else(run: Run) -> None:
    update = run.train("a", run.replica("a"), 0)
    plan = run.plan(1)
    expected = plan.training.expected(run.schema, update.header)
    assert {name: value.shape for name, value in values_of(update.path).items()} == {
        name: want.shape for name, want in expected.items()
    }
    size_bytes = sum(want.coding.most_bytes(want.shape[0] * want.shape[1]) for want in expected.values())
    assert update.path.stat().st_size < size_bytes + 200 * len(expected) + 1000, "a number takes its bits, or less"
    # In floats bits are the codec's own.
    changed = {"codec": "integers"} if run.settings.described().endswith("float32") else {"bits": 8}
    changed = {"codec": "float32"} if run.settings.described().endswith("bfloat16") else changed
    # Scores have a codec of their own.
    changed = {"stage": "prompts"} if plan.training.phase == "scores" else changed
    other = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, **changed))
    with pytest.raises(UpdateRefused):
        check_update(update.path, other, "r", "a")


def _check_factors(training: Any, state: PublishedState, layer: LayerSpec, artefact: Any, learned: Any) -> None:
    """What an adapter holds is what was learned; a method whose learning is no pair of factors is refused by name."""
    if isinstance(training, SubspaceTraining) or type(training) is FactorTraining:
        up, down = layer_factors(training, state, layer, artefact)
        assert up.shape[1] == down.shape[0]
        assert np.allclose(up.astype(np.float64) @ down, learned, atol=1e-6, rtol=1e-5)
    else:
        with pytest.raises(ConfigError, match=f"what '{training.method}' learns of a layer is no pair of factors"):
            layer_factors(training, state, layer, artefact)
    later = msgspec.structs.replace(training, generation=1)
    with pytest.raises(ConfigError, match="is merged into the base already"):
        layer_factors(later, state, layer, artefact)


def test_the_model_of_an_exact_method_is_the_mean_of_the_participants_models(run: Run) -> None:
    if run.settings.name in NOT_EXACT or run.only_head or run.beside:
        pytest.skip("not an exact method, or what it learns is no change of a weight and has tests of its own")
    updates = [run.train(name, run.replica(name), number) for number, name in enumerate(("a", "b"))]
    run.close(1, updates)
    plan, total = run.plan(1), sum(update.weight for update in updates)
    single = []
    for update in updates:
        alone = run.half.aggregate(ExactState.zero(plan.training, run.schema), plan, [update])
        single.append(_published_finely(alone))
    for layer in run.schema.layers:
        each = [layer_update(plan.training, state, layer, run.artefact) for state in single]
        mean = sum(update.weight / total * alone for update, alone in zip(updates, each, strict=True))
        found = layer_update(plan.training, _published_finely(run.state), layer, run.artefact)
        _check_factors(plan.training, _published_finely(run.state), layer, run.artefact, found)
        if isinstance(plan.training, BlockTraining) and layer.name not in plan.training.update_layer_shapes(run.schema):
            assert not found.any()
            continue
        assert np.abs(found).max() > 1e-3
        assert np.allclose(found, mean, atol=2e-3 * np.abs(found).max(), rtol=0)


def _published_finely(state: ExactState) -> PublishedState:
    """What is known, however many bits of it a job has published: rounding to them has tests of its own."""
    return (state if state.bits == 16 else replace(state, bits=16, exponents={})).publish()


def test_the_learned_part_is_what_the_replica_computes_with(run: Run) -> None:
    if run.settings.name in ("fedsa-lora", "spafl") or run.only_head or run.beside:
        pytest.skip("what a replica computes with is its own, or nothing is learned of layers' weights")
    replica = run.replica("a")
    run.close(1, [run.train("a", replica, 0)])
    layer = run.schema.layers[-1]
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, layer.columns)).astype(np.float32))
    name = next(name for name, module in replica.model.module.named_modules() if module is _target(replica, layer.name))
    with torch.no_grad():
        before = replica.model.module.get_submodule(name)(x)
        run.adopt(replica, 1, whole=True)
        after = replica.model.module.get_submodule(name)(x)
    learned = torch.from_numpy(layer_update(run.plan(1).training, run.published[1], layer, run.artefact))
    assert torch.allclose(after - before, x @ learned.T, atol=1e-5)


def _target(replica: Replica, name: str) -> nn.Module:
    """The module that stands where a target layer stood, whatever the method made of it."""
    return replica.model.module.get_submodule(name)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_an_export_computes_what_the_replica_computes(
    case: Case, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    settings = settings_of(case)
    run = Run(settings, make_llama(dtype="float32"), tmp_path, "float32")
    replica = run.replica("a")
    run.close(1, [run.train("a", replica, 0)])
    run.adopt(replica, 1, whole=True)
    training, out = run.plan(1).training, tmp_path / "out"
    if not training.shares_model:
        with pytest.raises(ConfigError, match="a model of its own"):
            export_model(run.base, run.published[1], run.schema, run.task, training, out)
        assert not out.exists()
        return
    token = torch.arange(3, 20)[None]
    if run.headed:
        export_model(run.base, run.published[1], run.schema, run.task, training, out)
        tuned = AutoModelForSequenceClassification.from_pretrained(out)
        with torch.no_grad():
            found, expected = (model(input_ids=token).logits for model in (tuned, replica.model.module))
        assert tuned.config.label2id == {"red": 0, "green": 1, "blue": 2} and torch.allclose(found, expected, atol=1e-5)
        return
    before = AutoModelForCausalLM.from_pretrained(run.folder)
    if run.beside:
        # As an adapter: tests of each type compare that with plain peft.
        with pytest.raises(ConfigError, match="stands beside the layers"):
            export_model(run.base, run.published[1], run.schema, run.task, training, out)
        assert not out.exists()
        with torch.no_grad():
            start, found = (model(token).last_hidden_state for model in (before.model, replica.model.backbone))
        assert not torch.allclose(found, start, atol=1e-3)
        return
    export_model(run.base, run.published[1], run.schema, run.task, training, out, run.artefact)
    exported = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        start, found, expected = (
            model.model(token).last_hidden_state for model in (before, exported, replica.model.module)
        )
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, start, atol=1e-2)
    if settings.merges_every:
        # The next round is open: what was learned is in the base already.
        following = run.plan(2).training
        state = run.published[1].refreshed(following, run.schema)
        export_model(run.base, state, run.schema, run.task, training, tmp_path / "later")
        one, other = (Checkpoint(folder) for folder in (out, tmp_path / "later"))
        for layer in run.schema.layers:
            merged_first, merged_last = (point.read(f"{layer.name}.weight") for point in (one, other))
            assert np.allclose(merged_first, merged_last, rtol=0, atol=1e-6)


def test_what_fedkseed_sends_does_not_grow_with_the_model(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    kind: Any = next(kind for kind in METHODS if kind.__struct_config__.tag == "fedkseed")
    for width, k in ((32, 4096), (96, 4096), (32, 16)):
        settings = kind(steps=4, interval_steps=2, batch_size=4, learning_rate=1e-2, num_seeds=k)
        run = Run(settings, make_llama(f"llama-{width}", width=width), tmp_path / f"{width}-{k}")
        update = run.train("a", run.replica("a"), 0)
        run.close(1, [update])
        run.published[1].write(run.own / "published state.bin")
        assert max(update.path.stat().st_size, (run.own / "published state.bin").stat().st_size) < 4096 + 2 * k


def test_states_of_methods_without_subspaces_travel(tmp_path: Path) -> None:
    kind = next(kind for kind in METHODS if kind.__struct_config__.tag == "fedavg")
    training = server_half(kind()).training(1, 5)
    from fedcore.weights.schema import ModelSchema

    schema = ModelSchema((LayerSpec("l", 3, 4),), ())
    state = PublishedState.zero(training, schema)
    state.write(tmp_path / "s")
    assert PublishedState.read(tmp_path / "s", training.shapes(schema)).digest() == state.digest()
