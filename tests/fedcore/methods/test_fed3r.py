# SPDX-License-Identifier: Apache-2.0
"""The head that updates lead to, against a plain ridge regression on all rows of all nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from plans import make_plan

from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.methods import server_half
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.model.state import ExactState, PublishedState
from fedcore.model.update import WeightedUpdate, write_update
from fedcore.numbers.clip import Clip
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.numbers.ridge import Moments, ridge_head
from fedcore.numbers.rules import MEAN
from fedcore.numbers.symmetric import pack_rows
from fedcore.privacy.noise import NoisyMean
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.round.training import PrivateTraining
from fedcore.round.training.head import FEATURE_UNIT, MOMENTS, hidden_units, target_scale
from fedcore.weights.initial import initial_tensor
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

Floats = NDArray[np.float64]
SCORES = TaskSection(kind="regression", middle=250.0)
LABELS = TaskSection(kind="text-classification", labels=("a", "b", "c"))
FEATURES = 10


def plan_of(task: TaskSection, *, bias: bool = True, alone: bool = True) -> Plan:
    outputs = 1 if task is SCORES else 3
    new = [TensorSpec("score.weight", (outputs, FEATURES), False)]
    new += [TensorSpec("score.bias", (outputs,), False, start=task.middle)] if bias else []
    # A tensor that is trained whole beside the head is none of the head's business.
    schema = ModelSchema((LayerSpec("l", 4, 6),), (TensorSpec("norm.weight", (5,), True), *new))
    half = server_half(Fed3RSettings()) if alone else server_half(FedAvgSettings(), head=HeadSection(start="ridge"))
    return make_plan(1, model_schema=schema, training=half.training(1, 9), task=task, cohort=("a", "b", "c"))


def update(folder: Path, plan: Plan, node: str, x: Floats, y: Floats) -> WeightedUpdate:
    """As a node makes it of its rows."""
    middle, unit = target_scale(plan.task)
    rows = np.concatenate([x / FEATURE_UNIT, np.ones((len(x), 1)), (y - middle) / unit], axis=1)
    whole = rows.T @ rows / len(x)
    packed = pack_rows(len(whole), lambda i: whole[i, i:], np.float32)
    coding = plan.training.coding(MOMENTS)
    record = Record(MOMENTS, encoded(packed, coding, MOMENTS), coding.bits, kind=coding.kind)
    header = UpdateHeader(run="r", round=1, node=node, version=0, examples=len(x), loss=0.5, seconds=1.0)
    write_update(folder / node, header, [record])
    admitted = admit(folder / node, plan, "r", node, SafetySection())
    return WeightedUpdate(folder / node, admitted.header, len(x))


def head_of(state: ExactState, plan: Plan) -> dict[str, Floats]:
    """Values, of the exact state."""
    found = {}
    for spec in plan.model_schema.tensors[1:]:
        start = initial_tensor(spec.name, spec.shape, 9, bias=spec.start).astype(np.float64)
        found[spec.name] = start + np.ldexp(state.sums[spec.name].astype(np.float64), -32).reshape(spec.shape)
    return found


def data(seed: int, outputs: int, rows: int = 200) -> tuple[Floats, Floats]:
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(rows, FEATURES)) * np.linspace(0.2, 2, FEATURES) + 0.5
    said = x @ np.random.default_rng(0).normal(size=(FEATURES, outputs)) + chance.normal(size=(rows, outputs))
    return x, said * 30 + 250 if outputs == 1 else np.eye(outputs)[said.argmax(axis=1)]


def test_a_regression_s_head_is_the_plain_one_with_the_strength_that_was_found(tmp_path: Path) -> None:
    plan = plan_of(SCORES)
    x, y = data(1, 1)
    half: Any = server_half(Fed3RSettings())
    # In order of scores: each node sees a part of the scale.
    order = np.argsort(y[:, 0])
    updates = [
        update(tmp_path, plan, node, x[part], y[part])
        for node, part in zip("abc", np.array_split(order, 3), strict=True)
    ]
    state = half.aggregate(ExactState.zero(plan.training, plan.model_schema), plan, updates)
    found = head_of(state, plan)
    centred = x - x.mean(axis=0)

    def plain(strength: float) -> Floats:
        whole = centred.T @ centred / len(x) + strength * np.eye(FEATURES)
        return np.linalg.solve(whole, centred.T @ (y - y.mean()) / len(x))

    # Of the strengths that are tried, the one that it took.
    largest = float(np.linalg.eigvalsh(centred.T @ centred / len(x))[-1])
    weights = [plain(largest * float(power)) for power in np.logspace(-7, 1, 161)]
    errors = [float(np.abs(found["score.weight"] - one.T).max()) for one in weights]
    best = weights[int(np.argmin(errors))]
    assert min(errors) < 1e-5 * np.abs(best).max()
    assert abs(found["score.bias"][0] - (y.mean() - x.mean(axis=0) @ best[:, 0])) < 1e-3
    assert float(((x @ found["score.weight"].T + found["score.bias"] - y) ** 2).mean()) < 1.2 * 30**2
    # What is not the head's stays.
    assert not state.sums["norm.weight"].any() and state.version == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("task", [SCORES, LABELS], ids=["scores", "labels"])
def test_how_rows_are_dealt_changes_nothing(tmp_path: Path, task: TaskSection, bias: bool) -> None:
    plan = plan_of(task, bias=bias)
    x, y = data(2, 1 if task is SCORES else 3)
    if not bias:
        # A number that is nearly one, as language models have it.
        x[:, 0] = 4.0 + 0.01 * x[:, 0]
    half: Any = server_half(Fed3RSettings())
    labels = y[:, 0].argsort().argsort() * 3 // len(y) if task is SCORES else y.argmax(axis=1)
    apart = [(node, np.flatnonzero(labels == label)) for label, node in enumerate("abc")]
    mixed = [(node, np.arange(place, len(x), 3)) for place, node in enumerate("abc")]
    heads = []
    for dealt in (apart, apart[::-1], mixed, [("a", np.arange(len(x)))]):
        updates = [update(tmp_path, plan, node, x[part], y[part]) for node, part in dealt]
        heads.append(half.aggregate(ExactState.zero(plan.training, plan.model_schema), plan, updates))
    one, turned, *others = heads
    assert all((one.sums[name] == turned.sums[name]).all() for name in one.sums), "whatever the order"
    for other in others:
        for name, value in head_of(one, plan).items():
            assert np.allclose(value, head_of(other, plan)[name], rtol=0, atol=1e-4 * np.abs(value).max())
    said = x @ head_of(one, plan)["score.weight"].T + (head_of(one, plan)["score.bias"] if bias else 0.0)
    if task is SCORES:
        assert float(((said - y) ** 2).mean()) < 1.3 * 30**2
    else:
        assert float((said.argmax(axis=1) == y.argmax(axis=1)).mean()) > 0.7


def test_sums_that_were_scaled_down_weigh_less_and_are_sums_still(tmp_path: Path) -> None:
    plan = plan_of(SCORES)
    half: Any = server_half(Fed3RSettings())
    (x, y), (u, v) = data(3, 1), data(4, 1)
    zero = ExactState.zero(plan.training, plan.model_schema)
    a, b = update(tmp_path, plan, "a", x, y), update(tmp_path, plan, "b", u, v)
    # A quarter of the weight, by a clip or by a share.
    clipped = [a, replace(b, clip=Clip(1 << 15, 17))]
    fewer = [replace(a, weight=320), replace(b, weight=80)]
    one, other = (head_of(half.aggregate(zero, plan, updates), plan) for updates in (clipped, fewer))
    for name, value in one.items():
        assert np.allclose(value, other[name], rtol=0, atol=1e-4 * np.abs(value).max())


def test_the_state_is_published_and_read_as_that_of_the_rounds_that_follow(tmp_path: Path) -> None:
    plan = plan_of(LABELS, alone=False)
    x, y = data(5, 3)
    half: Any = server_half(FedAvgSettings(), head=HeadSection(start="ridge"))
    state = half.aggregate(ExactState.zero(plan.training, plan.model_schema), plan, [update(tmp_path, plan, "a", x, y)])
    published = state.publish()
    published.write(tmp_path / "state")
    later = half.training(2, 9)
    assert type(later) is not type(plan.training)
    read = PublishedState.read(tmp_path / "state", later.shapes(plan.model_schema))
    assert read.digest() == published.digest() and not read.entries["l"].q.any()
    # What a node keeps of a plan that it does not know the method of is no plan at all.
    raw = msgspec.msgpack.encode(plan)
    assert msgspec.msgpack.decode(raw, type=Plan).training == plan.training


def hidden_update(folder: Path, plan: Plan, node: str, x: Floats, y: Floats) -> WeightedUpdate:
    """As a node makes it where rows or nodes are hidden: in units of its own, and what `update` would have no longer
    fits."""
    middle, unit = target_scale(plan.task)
    rows = np.concatenate([x / FEATURE_UNIT, np.ones((len(x), 1)), (y - middle) / unit], axis=1)
    rows = rows * hidden_units(FEATURES, y.shape[1])
    whole = rows.T @ rows / len(x)
    packed = pack_rows(len(whole), lambda i: whole[i, i:], np.float32)
    header = UpdateHeader(run="r", round=1, node=node, version=0, examples=len(x), loss=0.5, seconds=1.0)
    coding, privacy = plan.training.coding(MOMENTS), plan.training.privacy
    write_update(folder / node, header, [Record(MOMENTS, encoded(packed, coding, MOMENTS), 32, kind=coding.kind)])
    assert privacy is not None
    return WeightedUpdate(folder / node, header, len(x) if privacy.level == "example" else 1)


@pytest.mark.parametrize("level", ["example", "node"])
def test_a_hidden_head_is_that_of_a_ridge_as_strong_as_its_noise(
    level: Literal["example", "node"], tmp_path: Path
) -> None:
    """With next to no noise, so that what is left is the strength: known, and no larger than the noise asks for."""
    privacy = PrivateTraining(level=level, clip=2.0, noise_multiplier=1e-3, delta=1e-3)
    plan = plan_of(SCORES)
    plan = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, privacy=privacy))
    x, y = data(1, 1)
    parts = np.array_split(np.arange(len(y)), 4)
    updates = [hidden_update(tmp_path, plan, f"n{at}", x[part], y[part]) for at, part in enumerate(parts)]
    rule: Any = MEAN
    if level == "node":
        side = FEATURES + 2
        columns = {MOMENTS: np.ones(side + 1, np.bool_)}
        rule = NoisyMean(sigma=1, key=bytes(32), columns=columns, about="a")
    half: Any = server_half(Fed3RSettings())
    state = half.aggregate(ExactState.zero(plan.training, plan.model_schema), plan, updates, rule)
    # The noise on a number of the mean, in the features' own units, which are 8 / 1.5.
    times, count = (2.0, len(x)) if level == "example" else (1.0, 4)
    strength = 1e-3 * 2.0 * times / count * (8 / 1.5) ** 2 * np.sqrt(FEATURES)
    centred = x - x.mean(axis=0)
    whole = centred.T @ centred / len(x) + strength * np.eye(FEATURES)
    wanted = np.linalg.solve(whole, centred.T @ (y - y.mean()) / len(x))
    found = head_of(state, plan)["score.weight"]
    assert np.abs(found - wanted.T).max() < 2e-3 * np.abs(wanted).max()
    if level == "node":
        assert rule.used == {MOMENTS}


def test_hidden_classes_are_told_apart_by_scores_and_not_by_covariances_of_noise() -> None:
    x, y = data(3, 3, rows=2000)
    rows = np.concatenate([x, np.ones((len(x), 1)), y], axis=1)
    chance = np.random.default_rng(0)
    noise = np.triu(chance.normal(size=(14, 14)) * 0.02)
    moments = Moments(rows.T @ rows / len(x) + noise + np.triu(noise, 1).T, FEATURES, len(x))
    right = {}
    for name, fitted in (
        ("blind", ridge_head(moments, "classes")),
        ("told", ridge_head(moments, "classes", noise=0.02)),
    ):
        said = (x @ fitted.weight.T + fitted.bias).argmax(axis=1)
        right[name] = float((said == y.argmax(axis=1)).mean())
    assert right["told"] > 0.7
    assert ridge_head(moments, "classes", noise=0.02).strength == pytest.approx(0.02 * np.sqrt(FEATURES))


@pytest.mark.parametrize("labels", [2, 40])
def test_a_hidden_head_is_as_steep_as_its_labels_are_many(labels: int) -> None:
    """So that probabilities are of use, on rows that it has not seen; which label is the likeliest stays."""
    chance, features = np.random.default_rng(labels), 32
    middles = chance.normal(size=(labels, features))
    y = chance.integers(0, labels, 6000)
    x = middles[y] + chance.normal(size=(len(y), features))
    train, held = slice(0, 3000), slice(3000, None)
    rows = np.concatenate([x[train], np.ones((3000, 1)), np.eye(labels)[y[train]]], axis=1)
    noise = np.triu(chance.normal(size=(rows.shape[1],) * 2) * 0.003)
    moments = Moments(rows.T @ rows / 3000 + noise + np.triu(noise, 1).T, features, 3000)
    told = ridge_head(moments, "classes", noise=0.003)
    plain = ridge_head(moments, "scores", strength=told.strength)
    assert told.weight == pytest.approx(2 * np.sqrt(2 * labels) * (plain.weight - plain.weight.mean(axis=0)))

    def loss(factor: float) -> float:
        logits = factor * (x[held] @ plain.weight.T + plain.bias)
        logits -= logits.max(axis=1, keepdims=True)
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(3000), y[held]]).mean())

    assert loss(2 * np.sqrt(2 * labels)) < min(loss(2), 0.5 * np.log(labels))
