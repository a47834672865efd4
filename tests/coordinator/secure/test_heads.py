# SPDX-License-Identifier: Apache-2.0
"""A head from sums that nobody sees: masked, they lead to the same head to the last bit, before other rounds and alone,
whoever is lost; and with noise of the nodes' own."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.run.private import bounded, private_of
from coordinator.store.folder import RunFolder
from fedcore.config.privacy import NodePrivacy, PrivacySection
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.methods.beside.secure import SecureSection
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.interface import MethodSettings
from fedcore.model.lanes import write_lanes
from fedcore.model.update import write_update
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.numbers.ridge import ridge_head
from fedcore.numbers.symmetric import pack_rows, unpacked
from fedcore.privacy.shares import share_sigma
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.round.training import HeadTraining
from fedcore.round.training.head import FEATURE_UNIT, MOMENTS
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from tests.coordinator.secure.parties import Rounds
from tests.coordinator.secure.test_rounds import HALF, NAMES, Pair, exchanged
from tests.coordinator.secure.test_rounds import checkpoint as checkpoint  # a fixture

LABELS, FEATURES = ("a", "b", "c"), 5
SCHEMA = ModelSchema(
    (LayerSpec("l", 30, 16), LayerSpec("m", 20, 12)),
    (TensorSpec("score.weight", (len(LABELS), FEATURES), False), TensorSpec("score.bias", (len(LABELS),), False)),
)
TASK = TaskSection(kind="text-classification", labels=LABELS)
OPEN = SafetySection(norm_ratio=0, max_share_ratio=0, max_examples=100)


class Heads(Pair):
    """Nodes with rows of which one label is far more frequent than others."""

    schema, task = SCHEMA, TASK

    def _write(self, path: Path, plan: Plan, name: str, chance: np.random.Generator) -> None:
        if not isinstance(plan.training, HeadTraining):
            super()._write(path, plan, name, chance)
            return
        rows = int(chance.integers(20, 200))
        y = chance.choice(len(LABELS), rows, p=(0.7, 0.2, 0.1))
        x = chance.normal(size=(rows, FEATURES)) + np.eye(len(LABELS), FEATURES)[y] * 3
        v = np.concatenate([x / FEATURE_UNIT, np.ones((rows, 1)), np.eye(len(LABELS))[y]], axis=1)
        moments = v.T @ v / rows
        if plan.training.privacy is not None:
            moments /= 10 * np.sqrt(np.square(moments).sum())
        packed = pack_rows(v.shape[1], lambda row: moments[row, row:], np.float32)
        coding = plan.training.coding(MOMENTS)
        header = UpdateHeader(
            run="r", round=plan.round, node=name, version=plan.version, examples=rows, loss=0.0, seconds=1.0
        )
        record = Record(MOMENTS, encoded(packed, coding, MOMENTS), coding.bits, kind=coding.kind)
        write_update(path, header, [record])


class Begun(Heads):
    """Rounds of FedKRSO after it."""

    head = HeadSection(start="ridge", rates=1.0)


@pytest.mark.parametrize("lost", range(len(NAMES) - 3))
def test_the_digest_is_that_without_masks_in_the_head_s_round_and_after(
    lost: int, tmp_path: Path, checkpoint: Path
) -> None:
    pair = Begun(tmp_path, checkpoint, safety=OPEN)
    before = pair.models[1].published.digest()
    for number in (1, 2):
        plan = pair.begin(number)
        assert isinstance(plan.training, HeadTraining) == (number == 1)
        exchanged(pair, plan)
        pair.end_without(plan, pair.names[number : number + lost])
        assert pair.models[1].published.digest() != before
        before = pair.models[1].published.digest()
    assert pair.models[1].state.sums["score.weight"].any()


@pytest.mark.parametrize(
    ("method", "safety", "section"),
    [
        (Fed3RSettings(), OPEN, HALF),
        (Fed3RSettings(codec="integers", bits=16), msgspec.structs.replace(OPEN, norm_bound=1.0), HALF),
    ],
    ids=["float32", "integers, clipped"],
)
def test_the_method_of_heads_alone(
    method: MethodSettings, safety: SafetySection, section: SecureSection, tmp_path: Path, checkpoint: Path
) -> None:
    pair = Heads(tmp_path, checkpoint, section, method, safety=safety)
    plan = pair.begin(1)
    exchanged(pair, plan)
    pair.end(plan, pair.rounds.masked(plan, NAMES[1:]), alive=NAMES[1:])


def test_a_head_s_round_that_comes_to_nothing_leaves_the_head_as_it_was(tmp_path: Path, checkpoint: Path) -> None:
    pair = Begun(tmp_path, checkpoint, safety=OPEN)
    plan = pair.begin(1)
    exchanged(pair, plan)
    updates = pair.rounds.masked(plan, NAMES)
    for name in NAMES[:3]:
        pair.rounds.members[name].lost = True
    pair.end(plan, updates, alive=())
    assert pair.rounds.notes[0][0] == "unopened" and pair.models[1].state.version == 1
    assert not any(value.any() for value in pair.models[1].state.sums.values())
    assert not isinstance(pair.models[1].training(2), HeadTraining)


def test_nodes_noise_is_in_the_sum_and_the_head_is_told_how_much(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What six nodes send of norm a tenth, with noise that is sized for four."""
    privacy = PrivacySection(node=NodePrivacy(clip=0.2, delta=1e-2, noise_multiplier=0.5))
    private = private_of(privacy, Fed3RSettings(), 1, None)
    assert private is not None
    files = RunFolder(tmp_path / "run")
    files.root.mkdir()
    learning = Learning(
        method=Fed3RSettings(),
        seed=5,
        task=TASK,
        base_kind="int8",
        schema=SCHEMA,
        model_folder=checkpoint,
        safety=bounded(OPEN, privacy),
        secure=HALF,
        private=dataclasses.replace(private, least=4),
    )
    model, rounds = GlobalModel(learning, ScratchKeeping(files), 0), Rounds(tmp_path / "nodes", NAMES, HALF)
    model.begin(1, 4096, pytest.fail)
    plan = model.plan(1, NAMES, 0, 4096)
    pair = object.__new__(Heads)
    for index, name in enumerate(NAMES):
        path = files.update(1, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pair._write(path, plan, name, np.random.default_rng(index))
        write_lanes(path, plan, "r", name, rounds.members[name].lanes(1), key=name.encode().ljust(32, b"-"))
    rounds.open(plan)
    rounds.settle()
    found = rounds.close(rounds.masked(plan, NAMES))
    sigma = share_sigma(0.5, 0.2, 4, 32)
    assert found.unmasked.weight == found.unmasked.nodes == len(NAMES)
    assert found.unmasked.noise == pytest.approx(sigma * 2.0**-32 / math.sqrt(len(NAMES)))
    told = dict[str, Any]()

    def watched(*args: Any, **keys: Any) -> Any:
        told.update(keys)
        return ridge_head(*args, **keys)

    monkeypatch.setattr("fedcore.numbers.ridge.ridge_head", watched)
    closed = model.close_sum(found, 4096)
    assert closed.row.participants == NAMES
    (mean,) = (np.ldexp(units.astype(float), -32) for _, units in found.unmasked.means())
    ones = unpacked(mean)[FEATURES, FEATURES] / 0.25
    # In the features' own units: 8 / 1.5 of those in which they travel, each.
    assert told["noise"] == pytest.approx(found.unmasked.noise * (FEATURE_UNIT / 1.5) ** 2 / ones)
    assert model.state.sums["score.weight"].any()
