# SPDX-License-Identifier: Apache-2.0
"""Masked rounds that hide nodes: the sum is that of the updates and of each node's noise, to the last bit; with fewer
than its noise was sized for nobody opens anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.run.private import bounded, private_of
from coordinator.store.folder import RunFolder
from fedcore.config.privacy import NodePrivacy, PrivacySection
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, SecureError
from fedcore.methods.beside.secure import SecureSection
from fedcore.model.lanes import from_lanes, write_lanes
from fedcore.model.update import IndexedUpdate, WeightedUpdate, check_update
from fedcore.numbers.accumulator import clip_within
from fedcore.numbers.fixed import mean_fixed
from fedcore.privacy.shares import counted_on, share_sigma
from fedcore.round.plan import Plan
from tests.coordinator.secure.parties import Rounds
from tests.coordinator.secure.test_rounds import KRSO, NAMES, SAFETY, SCHEMA, Pair
from tests.coordinator.secure.test_rounds import checkpoint as checkpoint  # a fixture

PRIVACY = PrivacySection(node=NodePrivacy(clip=0.5, delta=1e-2, noise_multiplier=2.0))
LEAST = 4
HALF = SecureSection(threshold=0.5)


class Noisy(Pair):
    """A masked run whose nodes add noise."""

    def __init__(self, folder: Path, checkpoint: Path, section: SecureSection = HALF, least: int = LEAST) -> None:
        self.names, self.safety = NAMES, SAFETY
        files = RunFolder(folder / "secure")
        self.folders = [files]
        files.root.mkdir(parents=True)
        private = private_of(PRIVACY, KRSO, 3, None)
        assert private is not None
        learning = Learning(
            method=KRSO,
            seed=5,
            task=TaskSection(kind="regression"),
            base_kind="int8",
            schema=SCHEMA,
            model_folder=checkpoint,
            safety=bounded(msgspec.structs.replace(SAFETY, norm_bound=0.0), PRIVACY),
            secure=section,
            private=dataclasses.replace(private, least=least),
        )
        self.model = GlobalModel(learning, ScratchKeeping(files), 0)
        self.rounds = Rounds(folder / "nodes", NAMES, section)

    def opened(self, number: int = 1) -> Plan:
        """A round whose updates are trained, and whose keys and shares are exchanged."""
        self.model.begin(number, 4096, pytest.fail)
        plan = self.model.plan(number, NAMES, 0, 4096)
        for index, name in enumerate(NAMES):
            path = self.update(number, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, plan, name, np.random.default_rng((number, index)))
            write_lanes(path, plan, "r", name, self.rounds.members[name].lanes(number), key=self.key(name))
        self.rounds.open(plan)
        self.rounds.settle()
        return plan

    def update(self, number: int, name: str) -> Path:
        return self.folders[0].update(number, name)

    @staticmethod
    def key(name: str) -> bytes:
        return name.encode().ljust(32, b"-")


def lanes_of(path: Path, lane_bytes: int) -> NDArray[np.int64]:
    left = np.uint64(64 - 8 * lane_bytes)
    return (from_lanes(path.read_bytes(), lane_bytes) << left).view(np.int64) >> left.astype(np.int64)


def clipped(path: Path, plan: Plan, name: str, bound: float) -> NDArray[np.int64]:
    """An update's numbers in units, without any noise."""
    checked = check_update(path, plan, "r", name)
    clip = clip_within(checked.squared, bound)
    update, found = IndexedUpdate(WeightedUpdate(path, checked.header, 1, clip), plan), []
    for entry, shape in plan.training.shapes(plan.model_schema).items():
        whole = np.zeros(shape, np.int64)
        if entry in update:
            record, columns = update.record(entry)
            units = record.part.units(slice(None))
            whole[:, columns] = units if clip is None else clip.of(units)
        found.append(whole.reshape(-1))
    return np.concatenate(found)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_sum_is_that_of_updates_and_of_the_noise_of_those_who_stayed(
    lost: int, tmp_path: Path, checkpoint: Path
) -> None:
    run = Noisy(tmp_path, checkpoint)
    plan = run.opened()
    secure = plan.secure
    assert secure is not None and secure.least == LEAST and secure.norm_bound == 0.5
    alive = NAMES[lost:]
    found = run.rounds.close(run.rounds.masked(plan, alive))
    assert found.participants == alive
    lanes = {name: lanes_of(run.rounds.members[name].lanes(1), secure.lane_bytes) for name in alive}
    assert (found.unmasked.numbers == sum(lanes.values())).all() and found.unmasked.weight == len(alive)
    sigma, drawn = share_sigma(2.0, 0.5, LEAST, 32), []
    for name in alive:
        own = clipped(run.update(1, name), plan, name, 0.994 * 0.5)
        assert float(np.sqrt((own.astype(np.float64) ** 2).sum())) * 2.0**-32 <= 0.994 * 0.5
        noise = lanes[name][:-2] - own
        assert 0.9 * sigma < noise.std() < 1.1 * sigma and np.count_nonzero(noise) == noise.size
        drawn.append(noise)
    assert abs(np.corrcoef(drawn)[np.triu_indices(len(drawn), 1)]).max() < 0.15
    # What the state is made of is the mean of both; every one counts the same.
    shapes = plan.training.shapes(plan.model_schema)
    means = np.concatenate([mean.reshape(-1) for _, mean in found.unmasked.means()])
    total = sum(lanes.values())[:-2]  # type: ignore[index]
    assert means.size == sum(rows * columns for rows, columns in shapes.values())
    assert (means == mean_fixed(total.reshape(-1, 1), len(alive)).reshape(-1)).all()
    closed = run.model.close_sum(found, 4096)
    assert closed.row.participants == alive and 0 <= closed.row.train_loss < 1e3


def test_noise_is_drawn_anew_where_nobody_says_otherwise(tmp_path: Path, checkpoint: Path) -> None:
    run = Noisy(tmp_path, checkpoint)
    plan = run.opened()
    for name in ("one", "two"):
        write_lanes(run.update(1, "n0"), plan, "r", "n0", tmp_path / name)
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()


def test_fewer_than_the_noise_was_sized_for_open_nothing_though_masks_would_allow_it(
    tmp_path: Path, checkpoint: Path
) -> None:
    run = Noisy(tmp_path, checkpoint, least=5)
    plan = run.opened()
    found = run.rounds.close(run.rounds.masked(plan, NAMES[:4]))
    assert found.participants == ()
    assert "4 of 6 masked updates are in" in run.rounds.notes[-1][2] and "take 5 nodes" in run.rounds.notes[-1][2]
    assert run.model.close_sum(found, 4096).row.participants == ()


def test_a_coordinator_that_would_open_fewer_is_told_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """It leaves its own check out: the nodes have theirs."""
    run = Noisy(tmp_path, checkpoint, least=5)
    plan = run.opened()
    assert plan.secure is not None
    updates = run.rounds.masked(plan, NAMES[:4])
    exchange = run.rounds.leading._exchange
    assert exchange is not None
    exchange.settings = msgspec.structs.replace(plan.secure, least=0)
    assert run.rounds.close(updates).participants == ()
    lines = [member.lines[-1] for member in list(run.rounds.members.values())[:4]]
    assert all("too few to hide" in line for line in lines)


def test_an_update_with_noise_for_many_is_not_opened_among_few_in_another_attempt(
    tmp_path: Path, checkpoint: Path
) -> None:
    run = Noisy(tmp_path, checkpoint, least=6)
    plan = run.opened()
    run.rounds.masked(plan, NAMES)
    assert plan.secure is not None
    fewer = msgspec.structs.replace(plan, secure=msgspec.structs.replace(plan.secure, least=3))
    words = "nodes' noise was sized for a sum of 6 updates, and now one of 3 is asked for"
    # The same attempt after a kill, and another attempt.
    run.rounds.members["n0"].again(fewer, wanted=True)
    run.rounds.members["n1"].work.plan(msgspec.structs.replace(fewer, deadline_at=9.0), 0.0, able=True)
    assert [run.rounds.members[name].lines[-1] for name in ("n0", "n1")] == [f"secure aggregation: {words}"] * 2


def test_a_promise_without_a_number_of_nodes_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    run = Noisy(tmp_path, checkpoint)
    plan = run.opened()
    assert plan.secure is not None
    bare = msgspec.structs.replace(plan, secure=msgspec.structs.replace(plan.secure, least=0))
    with pytest.raises(SecureError, match="does not say of how many nodes"):
        write_lanes(run.update(1, "n0"), bare, "r", "n0", tmp_path / "lanes")


def test_with_few_bits_numbers_are_rounded_towards_zero_and_too_few_are_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    run = Noisy(tmp_path, checkpoint, SecureSection(threshold=0.5, fraction_bits=16))
    plan = run.opened()
    assert plan.secure is not None and plan.secure.lane_bytes == 4 and counted_on(LEAST) == 3
    found = run.rounds.close(run.rounds.masked(plan, NAMES))
    lanes = [lanes_of(run.rounds.members[name].lanes(1), 4) for name in NAMES]
    assert (found.unmasked.numbers == sum(lanes)).all()
    sigma = share_sigma(2.0, 0.5, LEAST, 16)
    own = [clipped(run.update(1, name), plan, name, 0.994 * 0.5) for name in NAMES]
    whole = [np.sign(one) * (np.abs(one) >> 16) for one in own]
    for lane, one in zip(lanes, whole, strict=True):
        assert 0.9 * sigma < (lane[:-2] - one).std() < 1.1 * sigma
    with pytest.raises(ConfigError, match="fewer than 16"):
        Noisy(tmp_path / "few", checkpoint, SecureSection(threshold=0.5, fraction_bits=8), least=2_000).opened()
