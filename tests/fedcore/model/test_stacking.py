# SPDX-License-Identifier: Apache-2.0
"""Stacked factors: the mean of the participants' models, exactly, with the same bits on every machine and in every
order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import make_plan

from fedcore.errors import ExactnessError, MalformedMessage, RunError
from fedcore.methods import server_half
from fedcore.methods.interface import ServerHalf
from fedcore.methods.lora.fedex import FedExLoRASettings
from fedcore.methods.lora.flora import FLoRASettings
from fedcore.model.base import Base
from fedcore.model.learned import layer_update
from fedcore.model.merge import finest_exponents, layer_change, merged, require_exact
from fedcore.model.state import ExactState, PublishedState
from fedcore.model.update import WeightedUpdate, check_update, write_update
from fedcore.numbers.accumulator import RowScaled, clip_within, quantise_rows
from fedcore.numbers.records import Record, read_records
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint, write_safetensors
from fedcore.weights.initial import initial_factor
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

SCHEMA = ModelSchema(
    (LayerSpec("a.dense", 300, 24), LayerSpec("b.dense", 3, 40)), (TensorSpec("head.bias", (3,), in_checkpoint=False),)
)
RANK, ALPHA, SEED = 4, 6.0, 9
KINDS = [
    FLoRASettings(rank=RANK, alpha=ALPHA, bits=16),
    FLoRASettings(rank=RANK, alpha=ALPHA, bits=16, own_factors=False),
    FedExLoRASettings(rank=RANK, alpha=ALPHA, bits=16),
]
NODES = {"a": 30, "b": 7, "c": 1}


def plan_of(half: ServerHalf, server_round: int) -> Plan:
    return msgspec.structs.replace(
        make_plan(server_round, cohort=tuple(NODES)),
        model_schema=SCHEMA,
        training=half.training(server_round, SEED),
        checksums=("0" * 16,) * len(SCHEMA.layers),
    )


def participants(half: ServerHalf, server_round: int, folder: Path, scale: float = 0.02) -> list[WeightedUpdate]:
    """Three nodes whose factors changed at random, by a different amount each."""
    plan, out = plan_of(half, server_round), []
    for number, (node, examples) in enumerate(NODES.items()):
        random = np.random.default_rng([server_round, number])
        records = []
        for name, (rows, columns) in plan.training.update_shapes(SCHEMA).items():
            change = (random.normal(size=(rows, columns)) * scale * 10.0**-number).astype(np.float32)
            records.append(Record(name, quantise_rows(change, 16), 16))
        path = folder / f"{node}-{server_round}"
        header = UpdateHeader(
            run="r",
            round=server_round,
            node=node,
            version=plan.version,
            examples=examples,
            rank=RANK,
            loss=1.0,
            seconds=1,
        )
        write_update(path, header, records)
        out.append(WeightedUpdate(path, check_update(path, plan, "r", node).header, examples))
    return out


def changes(update: WeightedUpdate) -> dict[str, np.ndarray[Any, Any]]:
    return {record.name: record.part.values().astype(np.float64) for record in read_records(update.path)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_round_gives_the_mean_of_the_participants_models(kind: Any, tmp_path: Path) -> None:
    half = server_half(kind)
    sizes = {f"{layer.name}.weight": (layer.rows, layer.columns) for layer in SCHEMA.layers}
    stored = {name: np.random.default_rng(size).normal(size=size).astype(np.float32) for name, size in sizes.items()}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    table = [(name, "F32", value.shape) for name, value in stored.items()]
    write_safetensors(tmp_path / "model" / "model.safetensors", table, stored.__getitem__)
    base = Base(Checkpoint(tmp_path / "model"), SCHEMA, "float32", tmp_path / "base")
    state = ExactState.zero(half.training(1, SEED), SCHEMA)
    for server_round in (1, 2, 3):
        plan = plan_of(half, server_round)
        before = state.publish()
        updates = participants(half, server_round, tmp_path)
        state = half.aggregate(state, plan, updates)
        published = state.publish()
        for layer in SCHEMA.layers:
            b: Any = np.zeros((layer.rows, RANK))
            mean = np.zeros((layer.rows, layer.columns))
            for update in updates:
                theirs = changes(update)
                training: Any = plan.training
                seed = training.node_seed(training.seeds, update.header.node)
                a: Any = initial_factor(f"{layer.name}/A", RANK, layer.columns, seed)
                if kind.name == "fedex-lora":
                    a = a + before.entries[f"{layer.name}/A"].values()
                    b = before.entries[f"{layer.name}/B"].values()
                product = (b + theirs[f"{layer.name}/B"]) @ (a + theirs[f"{layer.name}/A"])
                mean += update.weight / sum(NODES.values()) * ALPHA / RANK * product
            found = layer_update(plan.training, published, layer)
            assert np.abs(mean).max() > 1e-4
            assert np.abs(found - mean).max() < 2e-4 * np.abs(mean).max(), "16 bits a number on both factors"
        base.merge(published, server_round)
        following = half.training(server_round + 1, SEED)
        state = state.refreshed(following, SCHEMA)
        assert state.publish().stacked == 0 and state.publish().entries["head.bias"].q.any()
        for layer in SCHEMA.layers:
            stored[f"{layer.name}.weight"] = merged(
                stored[f"{layer.name}.weight"], layer_change(published, layer)(slice(None))
            )
            assert np.array_equal(base.master(layer), stored[f"{layer.name}.weight"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_order_of_updates_changes_nothing_and_weights_and_clips_count(kind: Any, tmp_path: Path) -> None:
    half = server_half(kind)
    plan, updates = plan_of(half, 1), participants(half, 1, tmp_path)
    zero = ExactState.zero(plan.training, SCHEMA)
    digests = {half.aggregate(zero, plan, order).publish().digest() for order in itertools.permutations(updates)}
    assert len(digests) == 1
    heavier = [*updates[:2], WeightedUpdate(updates[2].path, updates[2].header, 5)]
    squared = check_update(updates[0].path, plan, "r", "a").squared
    clipped = [WeightedUpdate(updates[0].path, updates[0].header, 30, clip_within(squared, 0.1)), *updates[1:]]
    for others in (heavier, clipped, updates[:2]):
        digests.add(half.aggregate(zero, plan, others).publish().digest())
    assert len(digests) == 4
    stacks = [
        half.aggregate(zero, plan, order).publish().entries["a.dense/up"].values()[:, :RANK]
        for order in (updates, clipped)
    ]
    clip = clipped[0].clip
    assert clip is not None and np.allclose(
        stacks[1], clip.factor * stacks[0], rtol=0, atol=1e-3 * np.abs(stacks[0]).max()
    )


def test_one_participant_of_fedex_leaves_no_residual(tmp_path: Path) -> None:
    half = server_half(KINDS[-1])
    plan = plan_of(half, 1)
    alone = half.aggregate(ExactState.zero(plan.training, SCHEMA), plan, participants(half, 1, tmp_path)[:1]).publish()
    assert not any(layer_change(alone, layer)(slice(None)).any() for layer in SCHEMA.layers)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_published_state_says_how_wide_its_stack_is(kind: Any, tmp_path: Path) -> None:
    half = server_half(kind)
    plan, updates = plan_of(half, 1), participants(half, 1, tmp_path)
    shapes = plan.training.shapes(SCHEMA)
    for count in (3, 1):
        state = half.aggregate(ExactState.zero(plan.training, SCHEMA), plan, updates[:count]).publish()
        state.write(tmp_path / "published_state")
        taken = PublishedState.read(tmp_path / "published_state", shapes)
        assert taken.digest() == state.digest() and taken.stacked == count * RANK
    fresh = state.refreshed(half.training(2, SEED), SCHEMA)
    fresh.write(tmp_path / "begun")
    assert PublishedState.read(tmp_path / "begun", shapes).digest() == fresh.digest() != state.digest()
    # A factor with another number of rows than the header says.
    up = state.entries["b.dense/up"]
    wrong = PublishedState(
        1, state.seeds, RANK, {**state.entries, "b.dense/up": RowScaled(np.tile(up.q, 2).astype(np.int16), up.exponent)}
    )
    wrong.write(tmp_path / "wrong")
    with pytest.raises(MalformedMessage):
        PublishedState.read(tmp_path / "wrong", shapes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 60))
def test_products_are_integers_whatever_the_scales(seed: int, terms: int, spread: int) -> None:
    random = np.random.default_rng(seed)
    units = random.integers(-(2**38), 2**38, (terms, 7)) >> random.integers(0, spread + 1, (terms, 1))
    up = RowScaled(
        random.integers(-32767, 32768, (5, terms)).astype(np.int16), random.integers(-28, 8, 5).astype(np.int8)
    )
    state = ExactState(1, (1,), 1, {"l/down": units}, {"l/down": finest_exponents(units)}).publish()
    down = state.entries["l/down"]
    require_exact(down, "l")
    lowest = int(down.exponent.min())
    right = down.q.astype(object) * np.array([2 ** (int(e) - lowest) for e in down.exponent], object)[:, None]
    exact = up.q.astype(object) @ right
    assert max(map(abs, exact.ravel())) <= 2**53
    expected = [
        [np.float32(np.ldexp(float(z), int(e) + lowest)) for z in row]
        for row, e in zip(exact, up.exponent, strict=True)
    ]
    layer = LayerSpec("l", 5, 7)
    change = layer_change(PublishedState(1, (1,), 1, {"l/up": up, "l/down": down}), layer)
    assert np.array_equal(change(slice(0, 5)), np.array(expected, np.float32))
    order = random.permutation(terms)
    turned = {"l/up": RowScaled(up.q[:, order], up.exponent), "l/down": RowScaled(down.q[order], down.exponent[order])}
    rows = layer_change(PublishedState(1, (1,), 1, turned), layer)
    assert np.array_equal(np.concatenate([rows(slice(0, 2)), rows(slice(2, 5))]), change(slice(0, 5)))


def test_a_product_that_would_depend_on_the_machine_is_refused() -> None:
    up = RowScaled(np.full((2, 3), 32767, np.int16), np.zeros(2, np.int8))
    down = RowScaled(np.full((3, 4), 32767, np.int16), np.array([0, -21, 0], np.int8))
    state = PublishedState(1, (1,), 1, {"l/up": up, "l/down": down})
    layer_change(state, LayerSpec("l", 2, 4))
    apart = RowScaled(down.q, np.array([0, -22, 0], np.int8))
    with pytest.raises(ExactnessError, match="too far apart"):
        layer_change(PublishedState(1, (1,), 1, {**state.entries, "l/down": apart}), LayerSpec("l", 2, 4))
    with pytest.raises(ExactnessError, match="nothing to merge"):
        layer_change(PublishedState(1, (), 0, {"l/A": up}), LayerSpec("l", 2, 4))


def test_more_participants_than_an_published_state_holds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = server_half(KINDS[0])
    plan = plan_of(half, 1)
    monkeypatch.setattr("fedcore.model.stacking.MAX_STACKED", 2 * RANK)
    with pytest.raises(RunError, match="3 participants"):
        half.aggregate(ExactState.zero(plan.training, SCHEMA), plan, participants(half, 1, tmp_path))


def test_a_node_has_an_a_of_its_own_in_each_generation_or_all_have_the_same() -> None:
    seeds: dict[bool, set[int]] = {}
    for own in (True, False):
        half = server_half(FLoRASettings(rank=RANK, own_factors=own))
        trainings: list[Any] = [half.training(server_round, SEED) for server_round in (1, 2)]
        seeds[own] = {one.node_seed(one.seeds, node) for one in trainings for node in NODES}
    assert len(seeds[True]) == 2 * len(NODES) and len(seeds[False]) == 2
