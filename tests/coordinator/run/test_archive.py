# SPDX-License-Identifier: Apache-2.0
"""What stays of a run's published objects: enough for everybody, and no more, however long the run and wherever it was
killed."""

from __future__ import annotations

import contextlib
import itertools
import pkgutil
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from leader import Killed, Leader

from coordinator.commands.coordinator import coordinator_export
from coordinator.messages.publisher import Key, key_of
from coordinator.run.archive import listed, snapshot_is_due
from coordinator.store.ledger import SqliteLedger
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, FedkrsoError, ModelError, RunError
from fedcore.fields.manifest import Manifest
from fedcore.model.base import Base
from fedcore.round.plan import Plan, StateObject, cheapest_way, objects_needed
from fedcore.weights.checkpoint import Checkpoint, write_safetensors
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from tests.patience import until

SCHEMA = ModelSchema((LayerSpec("l", 60, 16), LayerSpec("m", 40, 12)), (TensorSpec("head", (3, 4), False),))
TASK = TaskSection(kind="regression")


def make_model(root: Path) -> Path:
    model = root / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    chance = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"{s.name}.weight": chance.normal(size=(s.rows, s.columns)).astype("<f4") for s in SCHEMA.layers
    }
    write_safetensors(
        model / "model.safetensors", [(name, "F32", w.shape) for name, w in weights.items()], weights.__getitem__
    )
    return model


@pytest.fixture
def make_leader(tmp_path: Path) -> Callable[..., Leader]:
    model = make_model(tmp_path)
    return lambda name, **options: Leader(tmp_path / name, model, SCHEMA, TASK, **options)


def on_disk(leader: Leader) -> set[str]:
    return {path.name for path in leader.files.published_states.iterdir()}


def bytes_on_disk(leader: Leader) -> int:
    """Of the files that are there to the end of the look: it tidies after the plan is out."""
    total_bytes = 0
    for path in leader.files.published_states.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total_bytes += path.stat().st_size
    return total_bytes


def ledger_of(leader: Leader) -> SqliteLedger:
    return SqliteLedger(leader.files.ledger)


def published(version: int, generation: int, size: int, *, snapshot: bool = False) -> StateObject:
    name = f"{version}-{generation}-{snapshot}"
    return StateObject(version, generation, None, name, Manifest(name, size, name, 64), snapshot)


def test_the_list_stays_bounded_and_leads_there_from_anywhere() -> None:
    chance = random.Random(1)
    objects: dict[Key, StateObject] = {}
    seen = set()
    for generation in range(1, 100):
        end = published(generation, generation - 1, chance.randint(80, 120))
        objects[key_of(end)] = end
        if snapshot_is_due(objects, generation, lambda chain: 1000):
            snapshot = published(generation, generation, chance.randint(900, 1100), snapshot=True)
            objects[key_of(snapshot)] = snapshot
            seen.add(generation)
        now = listed(objects, generation, generation)
        total = sum(obj.manifest.size_bytes for obj in now)
        assert len(now) <= 2 * 1100 / 80 + 2 and total < 3 * 1100 + 120, now
        most = 1100 + 1100 + 120
        for held in [(0, 0), (0, generation), *((v, v - 1) for v in range(generation % 5 + 1, generation + 1, 5))]:
            way = cheapest_way(now, (generation, generation), held)
            assert way is not None and sum(obj.manifest.size_bytes for obj in way) <= most, (generation, held)
            missed = range(held[0], generation)
            # Short absences never cost a snapshot.
            assert len(missed) > 6 or all(not obj.snapshot for obj in way) or held[0] == 0, (generation, held, way)
        # As the archive drops them.
        objects = {key_of(obj): obj for obj in now}
    gaps = [b - a for a, b in itertools.pairwise(sorted(seen))]
    assert len(seen) >= 8 and min(gaps) >= 8 and max(gaps) <= 15


def test_a_long_run_keeps_its_disk_and_its_plans_small(make_leader: Callable[..., Leader]) -> None:
    leader = make_leader("run", every=2)
    plan = leader.start()
    most = 0
    for _ in range(30):
        plan = leader.advance(plan)
        names = on_disk(leader)
        assert {leader.path(obj).name for obj in plan.objects} <= names
        most = max(most, bytes_on_disk(leader))
        assert len(plan.objects) <= 12
        for held in [(0, 0), *((v, g) for v in range(plan.version + 1) for g in ((v - 1) // 2, v // 2) if v)]:
            assert objects_needed(plan, *held) is not None
    snapshots = [obj for obj in plan.objects if obj.snapshot]
    assert snapshots[-1].generation > 10
    # The snapshot, ends that weigh as much on either side of it, and the present versions.
    assert most < 3 * snapshots[-1].manifest.size_bytes + 5 * plan.objects[-1].manifest.size_bytes
    leader.kill()
    # What was published last stays, whatever the list says.
    assert {f"{v}-whole.bin" for v in (29, 30)} <= on_disk(leader) and "1-whole.bin" not in on_disk(leader)
    ledger = ledger_of(leader)
    assert {leader.path(obj).name for obj in ledger.published_states()} == on_disk(leader)
    ledger.close()


def test_seeds_that_stay_need_only_the_last_versions(make_leader: Callable[..., Leader]) -> None:
    leader = make_leader("run", every=0)
    plan = leader.until(12, leader.start())
    # It tidies after the plan is out.
    leader.kill()
    assert on_disk(leader) == {f"{v}-{kind}.bin" for v in (10, 11) for kind in ("whole", "difference")}
    assert [(obj.version, obj.kind) for obj in plan.objects] == [(11, "difference"), (11, "whole")]
    assert objects_needed(plan, 3, 0) == plan.objects[1:] and objects_needed(plan, 10, 0) == plan.objects[:1]


def final(leader: Leader, plan: Plan) -> str:
    """The digest that the run stands at in round 9, with the second snapshot behind it."""
    plan = leader.until(9, plan)
    leader.kill()
    return plan.start_digest


# Where a coordinator is killed in the round that writes the first snapshot: what is called there, and whether before or
# after.
FIRST_SNAPSHOT = 4
PLACES = [
    ("fedcore.weights.masters.MasterCopies.write", "after"),
    ("coordinator.run.archive.write_snapshot", "after"),
    ("coordinator.store.ledger.SqliteLedger.put_objects", "after"),
    ("coordinator.store.ledger.SqliteLedger.put_plan", "before"),
    ("coordinator.store.ledger.SqliteLedger.put_plan", "after"),
    ("coordinator.store.ledger.SqliteLedger.drop_objects", "after"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("undisturbed")
    leader = Leader(root / "run", make_model(root), SCHEMA, TASK)
    return final(leader, leader.start())


@pytest.mark.parametrize(("place", "when"), PLACES)
def test_killed_anywhere_around_a_merge_it_goes_on_to_the_same_digest(
    make_leader: Callable[..., Leader], undisturbed: str, monkeypatch: pytest.MonkeyPatch, place: str, when: str
) -> None:
    leader = make_leader("killed")
    plan = leader.until(FIRST_SNAPSHOT - 1, leader.start())
    assert not any(obj.snapshot for obj in plan.objects)
    real = pkgutil.resolve_name(place)

    def struck(*arguments: Any, **options: Any) -> Any:
        if when == "after":
            real(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, struck)
        # Unless the plan was out before.
        with contextlib.suppress(AssertionError):
            leader.advance(plan)
        assert isinstance(leader.died(), Killed)
    plan = leader.start()
    assert plan.round == FIRST_SNAPSHOT and any(obj.snapshot for obj in plan.objects)
    assert final(leader, plan) == undisturbed


def test_a_resumed_run_stands_in_the_subspaces_of_the_open_round(
    make_leader: Callable[..., Leader], undisturbed: str
) -> None:
    """Killed in every round, which with new seeds every round is the first of its generation."""
    leader = make_leader("killed")
    plan = leader.start()
    for _ in range(8):
        leader.kill()
        again = leader.start()
        assert (again.round, again.objects, again.start_digest) == (plan.round, plan.objects, plan.start_digest)
        plan = leader.advance(again)
    leader.kill()
    assert plan.round == 9 and plan.start_digest == undisturbed


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def test_a_damaged_base_is_made_anew(make_leader: Callable[..., Leader], undisturbed: str) -> None:
    leader = make_leader("damaged")
    plan = leader.start()
    for server_round in range(2, 8):
        plan = leader.until(server_round, plan)
        leader.kill()
        newest = max((path for path in leader.files.base.iterdir()), key=lambda path: int(path.name))
        if server_round % 3 == 0:
            flip(newest / "1.bin")
        elif server_round % 3 == 1:
            (newest / "0.bin").write_bytes((newest / "0.bin").read_bytes()[:-1])
        else:
            (newest / "masters.json").unlink()
        plan = leader.start()
    assert final(leader, plan) == undisturbed


def test_a_base_that_is_damaged_while_the_coordinator_lives_is_made_anew(
    make_leader: Callable[..., Leader], undisturbed: str
) -> None:
    leader = make_leader("damaged")
    plan = leader.until(6, leader.start())
    (newest,) = leader.files.base.iterdir()
    flip(newest / "0.bin")
    assert final(leader, plan) == undisturbed
    ledger = ledger_of(leader)
    assert any(kind == "disk" and "damaged" in text for _, kind, _, text in ledger.events())
    ledger.close()


def test_an_export_has_what_was_learned_once(make_leader: Callable[..., Leader], tmp_path: Path) -> None:
    """Also while the next round is open, when the base was merged already."""
    leader = make_leader("t")
    leader.until(4, leader.start())
    leader.kill()
    (leader.files.root / "job.json").write_bytes(msgspec.json.encode(leader.job))
    ledger = ledger_of(leader)
    ledger.put_fact("task", TASK)
    ledger.put_fact("schema", SCHEMA)
    ledger.close()
    base = Base(Checkpoint(leader.model), SCHEMA, "int8", leader.files.base)
    assert base.generation == 3
    arguments = ["t", str(tmp_path / "out"), "--runs", str(leader.files.root.parent)]
    done = CliRunner().invoke(coordinator_export, arguments)
    assert done.exit_code == 0, done.output
    exported = Checkpoint(tmp_path / "out")
    for layer in SCHEMA.layers:
        assert np.array_equal(exported.read(f"{layer.name}.weight"), base.master(layer))
    (leader.files.base / "3" / "masters.json").unlink()
    kept = CliRunner().invoke(coordinator_export, arguments)
    assert isinstance(kept.exception, ConfigError) and "--overwrite" in kept.exception.one_line()
    failed = CliRunner().invoke(coordinator_export, [*arguments, "--overwrite"])
    assert isinstance(failed.exception, RunError) and "coordinator resume t" in failed.exception.one_line()


def test_what_a_kill_left_behind_is_swept(make_leader: Callable[..., Leader]) -> None:
    leader = make_leader("run")
    plan = leader.until(3, leader.start())
    (leader.files.published_states / "77-snapshot.bin.part").write_bytes(b"x")
    leader.advance(plan)
    leader.kill()
    assert "77-snapshot.bin.part" not in on_disk(leader)


def test_updates_of_closed_rounds_leave_the_disk_when_the_next_one_is_out(make_leader: Callable[..., Leader]) -> None:
    leader = make_leader("run")
    leader.until(4, leader.start())
    until(lambda: [path.name for path in leader.files.updates.iterdir()] == ["3"])
    assert list((leader.files.updates / "3").iterdir())
    leader.kill()
    # Nothing of it is needed to go on.
    shutil.rmtree(leader.files.updates)
    leader.until(6, leader.start())
    leader.kill()


def error_of(leader: Leader) -> FedkrsoError:
    with pytest.raises(AssertionError, match="ended"):
        leader.start()
    error = leader.died()
    assert isinstance(error, FedkrsoError)
    return error


def test_a_changed_checkpoint_is_refused_and_the_right_one_goes_on(tmp_path: Path, undisturbed: str) -> None:
    model = make_model(tmp_path / "own")
    for server_round in (1, 6):
        leader = Leader(tmp_path / f"run-{server_round}", model, SCHEMA, TASK)
        leader.until(server_round, leader.start())
        leader.kill()
        weights = (model / "model.safetensors").read_bytes()
        flip(model / "model.safetensors", at=0.9)
        if server_round > 1:
            # The merged base does not need the checkpoint until it is damaged.
            flip(next(leader.files.base.iterdir()) / "0.bin")
        error = error_of(leader)
        assert isinstance(error, ModelError) and "not those that the run began with" in error.one_line(), error
        (model / "model.safetensors").write_bytes(weights)
        assert final(leader, leader.start()) == undisturbed


def test_when_all_is_damaged_it_says_so(make_leader: Callable[..., Leader]) -> None:
    leader = make_leader("run")
    plan = leader.until(3, leader.start())
    leader.kill()
    flip(next(leader.files.base.iterdir()) / "0.bin")
    flip(leader.path(next(obj for obj in plan.objects if obj.generation == 0)))
    error = error_of(leader)
    assert isinstance(error, RunError) and "damaged" in error.one_line()
