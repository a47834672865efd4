# SPDX-License-Identifier: Apache-2.0
"""Rounds with secure aggregation come to the digest of those without, whoever is lost and whoever is killed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import Closed, GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import UpdateRow
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.errors import UpdateRefused
from fedcore.methods.beside.secure import SecureSection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.model.lanes import write_lanes
from fedcore.model.update import write_update
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record, read_records
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import write_safetensors
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from tests.coordinator.secure.parties import Rounds

SCHEMA = ModelSchema((LayerSpec("l", 30, 16), LayerSpec("m", 20, 12)), (TensorSpec("head", (3, 4), False),))
NAMES = tuple(f"n{number}" for number in range(6))
SAFETY = SafetySection(norm_ratio=0, max_share_ratio=0, norm_bound=1.0, max_examples=100)
HALF = SecureSection(threshold=0.5)
KRSO = FedKRSOSettings(rank=4, num_seeds=3, steps=20, projection="signs", bits=4, server_momentum=0.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    chance = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"{s.name}.weight": chance.normal(size=(s.rows, s.columns)).astype("<f4") for s in SCHEMA.layers
    }
    entries = [(name, "F32", w.shape) for name, w in weights.items()]
    write_safetensors(folder / "model.safetensors", entries, weights.__getitem__)
    return folder


class Pair:
    """The same run twice: with secure aggregation, and without."""

    schema, task, head = SCHEMA, TaskSection(kind="regression"), HeadSection()

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        section: SecureSection = HALF,
        method: MethodSettings = KRSO,
        names: Sequence[str] = NAMES,
        safety: SafetySection = SAFETY,
    ) -> None:
        self.names, self.safety = tuple(names), safety
        self.models: list[GlobalModel] = []
        self.folders = [RunFolder(folder / "plain"), RunFolder(folder / "secure")]
        for files, secure in zip(self.folders, (None, section), strict=True):
            files.root.mkdir(parents=True)
            learning = Learning(
                method=method,
                seed=5,
                task=self.task,
                base_kind="int8",
                schema=self.schema,
                model_folder=checkpoint,
                safety=safety,
                secure=secure,
                head=self.head,
            )
            self.models.append(GlobalModel(learning, ScratchKeeping(files), 0))
        self.rounds = Rounds(folder / "nodes", self.names, section)
        self.plain = dict[str, UpdateRow]()

    def end_without(self, plan: Plan, gone: Sequence[str]) -> None:
        """End a round whose keys are exchanged, with nodes that are lost until it is over."""
        alive = [name for name in self.names if name not in gone]
        updates = self.rounds.masked(plan, alive)
        for name in gone:
            self.rounds.members[name].lost = True
        self.end(plan, updates, alive=alive)
        for name in gone:
            self.rounds.members[name].lost = False

    def begin(self, number: int, deadline_at: float = 0) -> Plan:
        """A round, open at both; and every node's update, as lanes too."""
        plans = []
        for model in self.models:
            model.begin(number, 4096, pytest.fail)
            plans.append(model.plan(number, self.names, deadline_at, 4096))
        assert msgspec.structs.replace(plans[1], secure=None) == plans[0]
        for index, name in enumerate(self.names):
            path = self.folders[0].update(number, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, plans[0], name, np.random.default_rng((number, index)))
            admitted = admit(path, plans[0], "r", name, self.safety)
            file = str(path.relative_to(self.folders[0].root))
            self.plain[name] = UpdateRow("", file, 1, admitted.header, admitted.norm, admitted.clip)
            write_lanes(path, plans[1], "r", name, self.rounds.members[name].lanes(number))
        return plans[1]

    def end(self, plan: Plan, updates: dict[str, Path], *, alive: Sequence[str]) -> Closed:
        """Both close, over the same updates; they must come to the same."""
        for name, path in updates.items():
            assert admit(path, plan, "r", name, self.safety).header.examples == 0
        found = self.rounds.close(updates)
        assert found.participants == tuple(alive), self.rounds.notes
        secure = self.models[1].close_sum(found, 4096)
        if alive:
            bare = msgspec.structs.replace(plan, secure=None)
            plain = self.models[0].close(bare, [self.plain[name] for name in alive], 4096)
            assert [obj.digest for obj in secure.objects] == [obj.digest for obj in plain.objects]
            assert secure.row.train_loss == pytest.approx(plain.row.train_loss, abs=1e-3)
            self.models[0].publish(plain.objects, plain.row)
        self.models[1].publish(secure.objects, secure.row)
        return secure

    def _write(self, path: Path, plan: Plan, name: str, chance: np.random.Generator) -> None:
        subspaces = tuple(range(len(plan.training.seeds)))
        header = UpdateHeader(
            run="r",
            round=plan.round,
            node=name,
            version=plan.version,
            examples=int(chance.integers(1, 200)),
            rank=plan.training.rank,
            subspaces=subspaces if plan.training.rank else (),
            loss=float(chance.random()),
            seconds=1.0,
        )
        # Some are beyond the norm bound, some within.
        size, records = 10.0 ** -float(chance.integers(0, 4)), []
        for key, want in plan.training.expected(plan.model_schema, header).items():
            values = (chance.normal(size=want.shape) * size).astype(np.float32)
            records.append(Record(key, encoded(values, want.coding, key), want.coding.bits, kind=want.coding.kind))
        write_update(path, header, records)


def exchanged(pair: Pair, plan: Plan) -> None:
    """Keys and shares, up to where masks are known."""
    pair.rounds.open(plan)
    pair.rounds.settle()


@pytest.mark.parametrize("lost", range(len(NAMES) - 3))
def test_the_digest_is_that_without_for_every_number_of_lost_nodes(lost: int, tmp_path: Path, checkpoint: Path) -> None:
    """Of six holders four give a secret back: two may be lost, in each of two rounds."""
    pair = Pair(tmp_path, checkpoint)
    for number in (1, 2):
        plan = pair.begin(number)
        exchanged(pair, plan)
        pair.end_without(plan, pair.names[number : number + lost])
    assert not [note for note in pair.rounds.notes if note[0] != "declined"]


@pytest.mark.parametrize("when", ["before the keys", "before the shares", "after the upload"])
def test_nodes_are_lost_at_any_stage(when: str, tmp_path: Path, checkpoint: Path) -> None:
    pair = Pair(tmp_path, checkpoint)
    plan, gone = pair.begin(1), NAMES[2:4]
    people = [pair.rounds.members[name] for name in gone]
    alive = [name for name in NAMES if name not in gone]
    for one in people:
        one.lost = when == "before the keys"
    pair.rounds.open(plan)
    for one in people:
        one.lost = when in ("before the keys", "before the shares")
    pair.rounds.settle()
    pair.rounds.wait(pair.rounds.section.wait_seconds)
    pair.rounds.wait(pair.rounds.section.wait_seconds)
    assert pair.rounds.left == ([] if when == "after the upload" else list(gone))
    updates = pair.rounds.masked(plan, NAMES if when == "after the upload" else alive)
    for one in people:
        one.lost = True
    pair.end(plan, updates, alive=NAMES if when == "after the upload" else alive)


def test_beyond_the_threshold_the_round_comes_to_nothing_in_clear_words_and_the_next_goes_on(
    tmp_path: Path, checkpoint: Path
) -> None:
    pair = Pair(tmp_path, checkpoint)
    plan = pair.begin(1)
    exchanged(pair, plan)
    updates = pair.rounds.masked(plan, NAMES)
    for name in NAMES[:3]:
        pair.rounds.members[name].lost = True
    pair.end(plan, updates, alive=())
    words = (
        "round 1 comes to nothing, the model stays as it was: 3 nodes answered of 4 that it takes to take the masks off"
    )
    assert pair.rounds.notes == [("unopened", "", words)]
    before, after = (pair.models[1].state, pair.models[0].state)
    assert all((before.sums[name] == after.sums[name]).all() for name in before.sums)
    # Too few updates: nothing is asked of anybody.
    plan = pair.models[1].plan(2, NAMES, 1, 4096)
    for one in pair.rounds.members.values():
        one.lost, one.sent = False, None
    for name in NAMES:
        write = pair.rounds.members[name].lanes(2)
        write.write_bytes(pair.rounds.members[name].lanes(1).read_bytes())
    exchanged(pair, plan)
    found = pair.rounds.close(pair.rounds.masked(plan, NAMES[:3]))
    assert found.participants == () and "3 of 6 masked updates are in" in pair.rounds.notes[-1][2]


@pytest.mark.parametrize(
    "method",
    [
        FedAvgSettings(steps=20, interval_steps=10, share="uniform"),
        FedAvgSettings(steps=20, interval_steps=10, codec="bfloat16"),
        FedAvgSettings(steps=20, interval_steps=10, codec="top-k", density=0.2),
        FedKRSOSettings(rank=4, num_seeds=2, steps=20, moments="carried", share="uniform", bits=16, server_step=0.5),
    ],
    ids=lambda method: method.described(),
)
def test_methods_and_codecs(method: MethodSettings, tmp_path: Path, checkpoint: Path) -> None:
    pair = Pair(tmp_path, checkpoint, method=method, safety=SafetySection(norm_ratio=0, max_share_ratio=0))
    plan = pair.begin(1)
    exchanged(pair, plan)
    alive = NAMES[1:]
    pair.end(plan, pair.rounds.masked(plan, alive), alive=alive)


def test_fewer_bits_make_smaller_updates_whose_numbers_are_rounded_on_the_node(
    tmp_path: Path, checkpoint: Path
) -> None:
    safety = SafetySection(norm_ratio=0, max_share_ratio=0, norm_bound=1.0)
    method = FedAvgSettings(steps=20, interval_steps=10, share="uniform", bits=16)
    pair = Pair(tmp_path, checkpoint, SecureSection(threshold=0.5, fraction_bits=20), method, safety=safety)
    plan = pair.begin(1)
    assert plan.secure is not None and plan.secure.lane_bytes == 4
    exchanged(pair, plan)
    found = pair.rounds.close(pair.rounds.masked(plan, NAMES))
    for name, mean in found.unmasked.means():
        total = [0] * mean.size
        for row in pair.plain.values():
            record = next(r for r in read_records(pair.folders[0].root / row.file) if r.name == name)
            units = record.part.units(slice(None))
            units = units if row.clip is None else row.clip.of(units)
            for index, unit in enumerate(units.reshape(-1).tolist()):
                total[index] += round(Fraction(unit, 2**12)) * 2**12
        assert mean.reshape(-1).tolist() == [round(Fraction(one, len(NAMES))) for one in total]


def test_ring_of_neighbours(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve nodes with four neighbours each, which no number of nodes as small as that would have."""
    for module in ("coordinator.secure.exchange", "edge_client.secure.party"):
        monkeypatch.setattr(f"{module}.degree_for", lambda count, share: 4)
    names = tuple(f"n{number:02d}" for number in range(12))
    pair = Pair(tmp_path, checkpoint, SecureSection(threshold=0.5), names=names)
    plan = pair.begin(1)
    exchanged(pair, plan)
    assert {len(member.work.masks_with) for member in pair.rounds.members.values()} == {4}
    alive = names[:3] + names[4:]
    pair.end(plan, pair.rounds.masked(plan, alive), alive=alive)


def test_coordinator_and_nodes_are_killed_at_every_stage(tmp_path: Path, checkpoint: Path) -> None:
    pair = Pair(tmp_path, checkpoint)
    plan, rounds = pair.begin(1), pair.rounds
    people = list(rounds.members.values())
    rounds.open(plan)
    rounds.again(plan)
    people[0].again(plan, wanted=False)
    rounds.wait(3)
    rounds.again(plan)
    people[1].again(plan, wanted=False)
    for _ in range(4):
        rounds.wait(40)
    for one in people:
        one.again(plan, wanted=False)
    updates = rounds.masked(plan, NAMES[:-1])
    first = updates["n2"].read_bytes()
    people[2].sent = None
    people[2].again(plan, wanted=True)
    assert rounds.masked(plan, ["n2"])["n2"].read_bytes() == first, "made again, it is the same"
    rounds.leading.close(updates)
    rounds.settle()
    rounds.again(plan)
    # Another update has come in the meantime: the list stays as it was told.
    updates |= rounds.masked(plan, NAMES[-1:])
    for one in people:
        one.again(plan, wanted=False)
    pair.end(plan, updates, alive=NAMES[:-1])


def test_a_round_that_opens_again_is_masked_anew_and_opened_once(tmp_path: Path, checkpoint: Path) -> None:
    pair = Pair(tmp_path, checkpoint)
    plan = pair.begin(1)
    exchanged(pair, plan)
    first = {name: path.read_bytes() for name, path in pair.rounds.masked(plan, NAMES).items()}
    again = msgspec.structs.replace(plan, deadline_at=7.0)
    for one in pair.rounds.members.values():
        one.work.send(plan)
    pair.rounds.open(again)
    assert all(one.sent is None for one in pair.rounds.members.values()), "what is under way is of no use any more"
    pair.rounds.settle()
    updates = pair.rounds.masked(again, NAMES)
    assert all(updates[name].read_bytes() != first[name] for name in NAMES)
    with pytest.raises(UpdateRefused, match="attempt 1-train-7000"):
        admit(updates["n0"], plan, "r", "n0", SAFETY)
    pair.end(again, updates, alive=NAMES)
    # What was opened stays so: a third attempt could betray who is in one sum and not in the other.
    pair.rounds.open(msgspec.structs.replace(plan, deadline_at=8.0))
    pair.rounds.settle()
    assert all("opened once" in one.lines[-1] for one in pair.rounds.members.values())
