# SPDX-License-Identifier: Apache-2.0
"""There is one round engine, and what it learns is the same whatever outlives a round."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator.channel.errors import channel_training
from coordinator.job import SafetySection
from coordinator.rounds.policy import admit
from coordinator.run.archive import Archive
from coordinator.run.keeping import Keeping, ScratchKeeping
from coordinator.run.model import Closed, GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow, SqliteLedger, UpdateRow
from coordinator.store.statefile import save_state
from fedcore.config.channel import ChannelSection
from fedcore.config.sections import TaskSection
from fedcore.errors import RunError
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.update import write_update
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import write_safetensors
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from tests.house import FLOORS, ROOT, modules

SCHEMA = ModelSchema((LayerSpec("l", 30, 16), LayerSpec("m", 20, 12)), (TensorSpec("head", (3, 4), False),))
METHOD = FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8, schedule="fresh", refresh_every=2)
CLAIMS = {"a": 50, "b": 60, "liar": 6000}
CHUNK_BYTES = 4096
# What a round is made of, and where else than in the engine it may be called: a method's own server half, what that
# half is built from, and the coordinator's policy.
ENGINE = "coordinator/run/model.py"
# It times what the engine calls.
BENCH = "coordinator/commands/bench_aggregate.py"
# It makes one update of many.
BACK = "edge_client/worker/programs/back.py"
# It tries settings by the engine.
TRIALS = "fedkrso/tuning/trials.py"
OF_A_ROUND = {
    "aggregate": (ENGINE, BENCH, "fedcore/methods/fed3r.py"),
    "round_shares": (ENGINE,),
    "after_rule": ("fedcore/methods/",),
    "exact_mean": (
        "fedcore/methods/seeded/fedkseed.py",
        "fedcore/methods/split.py",
        "fedcore/methods/whole/fedcybgd.py",
        "fedcore/methods/prompts/fedpeptao.py",
        "examples/own_method/",
    ),
    "Combined": ("fedcore/methods/interface.py",),
    "after_stacking": ("fedcore/methods/",),
    # A round's whole sum, or one that is handed out to nobody.
    "add_updates": (
        "fedcore/methods/interface.py",
        "fedcore/methods/moments.py",
        "fedcore/model/stacking.py",
        "coordinator/sums/adder.py",
    ),
    "WeightedUpdate": (
        ENGINE,
        BENCH,
        BACK,
        "fedcore/model/lanes.py",
        "fedcore/model/stacking.py",
        # As a worker finds them written.
        "coordinator/sums/task.py",
    ),
    # The engine reads what a worker of its own made.
    "check_update": ("coordinator/rounds/policy.py", ENGINE, "fedcore/model/lanes.py"),
    "clip_for": ("coordinator/rounds/policy.py",),
    "admit": ("coordinator/messages/reception.py", TRIALS, "research/experiment.py"),
    "GlobalModel": ("coordinator/run/service.py", TRIALS, "research/experiment.py"),
}


def calls(path: Path) -> Iterator[str]:
    """Names of the functions and methods that a file calls."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr


def test_nobody_writes_a_round_a_second_time() -> None:
    found: dict[str, set[str]] = {name: set() for name in OF_A_ROUND}
    for floor in FLOORS:
        for path in modules(floor):
            for name in found.keys() & set(calls(path)):
                found[name].add(path.relative_to(ROOT).as_posix())
    allowed = {name: {file for file in files if file.startswith(OF_A_ROUND[name])} for name, files in found.items()}
    assert found == allowed
    assert all(found.values()), "a name that nothing calls any more guards nothing"


@pytest.fixture
def learning(tmp_path: Path) -> Learning:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    chance = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"{s.name}.weight": chance.normal(size=(s.rows, s.columns)).astype("<f4") for s in SCHEMA.layers
    }
    write_safetensors(
        model / "model.safetensors", [(name, "F32", w.shape) for name, w in weights.items()], weights.__getitem__
    )
    safety = SafetySection(norm_bound=1.0, max_share_ratio=10.0)
    return Learning(
        method=METHOD,
        seed=5,
        task=TaskSection(kind="regression"),
        base_kind="int8",
        schema=SCHEMA,
        model_folder=model,
        safety=safety,
    )


def test_a_round_says_what_its_channel_loses(learning: Learning, tmp_path: Path) -> None:
    """Each round another draw, the same after a restart; the head's round, and rounds after it, all go over it."""
    section = ChannelSection(scenario="jammed", users=2)
    over = replace(learning, channel=section)
    quiet, one, again = (
        GlobalModel(kind, ScratchKeeping(RunFolder(tmp_path / name)), 0)
        for name, kind in (("quiet", learning), ("one", over), ("again", over))
    )
    first, second = one.training(1), one.training(2)
    assert quiet.training(1).channel is None and first.channel is not None and second.channel is not None
    assert first.channel != second.channel and again.training(2) == second
    assert msgspec.structs.replace(first, channel=None) == quiet.training(1)
    assert begun(one, 1).training.channel == first.channel == channel_training(section, 5, 1)


def begun(model: GlobalModel, server_round: int) -> Plan:
    model.begin(server_round, CHUNK_BYTES, pytest.fail)
    return model.plan(server_round, tuple(CLAIMS), 0, CHUNK_BYTES)


def closed(model: GlobalModel, folder: RunFolder, plan: Plan, safety: SafetySection) -> Closed:
    """A round with three updates: one is scaled down to the bound on norms, one claims too many examples."""
    rows = []
    for number, (node, examples) in enumerate(CLAIMS.items()):
        chance, path = np.random.default_rng((plan.round, number)), folder.update(plan.round, node)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = UpdateHeader(
            run="r",
            round=plan.round,
            node=node,
            version=plan.version,
            examples=examples,
            rank=4,
            subspaces=(0, 1),
            loss=1.0,
            seconds=1.0,
        )
        size = 0.5 if node == "b" else 0.01
        records = []
        for name, want in plan.training.expected(SCHEMA, header).items():
            change = (chance.normal(size=want.shape) * size).astype(np.float32)
            records.append(Record(name, encoded(change, want.coding, name), want.coding.bits))
        write_update(path, header, records)
        found = admit(path, plan, "r", node, safety)
        file = str(path.relative_to(folder.root))
        rows.append(UpdateRow("t", file, path.stat().st_size, found.header, found.norm, found.clip))
    return model.close(plan, rows, CHUNK_BYTES)


def five_rounds(learning: Learning, keeping: Keeping) -> list[Closed]:
    model, done = GlobalModel(learning, keeping, 0), []
    for server_round in range(1, 6):
        plan = begun(model, server_round)
        done.append(closed(model, keeping.folder, plan, learning.safety))
        model.publish(done[-1].objects, done[-1].row)
    return done


class UnreadLedger(SqliteLedger):
    """One that refuses to have its rounds read: whoever serves a run has read them."""

    def rounds(self) -> list[RoundRow]:
        """Refused."""
        raise AssertionError("the engine reads the ledger's rounds a second time")


def test_what_is_learned_does_not_depend_on_what_is_kept(learning: Learning, tmp_path: Path) -> None:
    folders = RunFolder(tmp_path / "scratch"), RunFolder(tmp_path / "run")
    folders[1].root.mkdir()
    with contextlib.closing(UnreadLedger(folders[1].ledger)) as ledger:
        scratch, kept = ScratchKeeping(folders[0]), Archive(folders[1], ledger, 2, ())
        one, other = five_rounds(learning, scratch), five_rounds(learning, kept)
    assert one == other and len({done.objects[0].digest for done in one}) == 5
    kinds = [[obj.kind for obj in done.objects] for done in one]
    assert kinds == [["whole"], ["whole", "difference"]] + [["whole"], ["whole", "difference"], ["whole"]]
    assert [done.row.train_loss for done in one] == [1.0] * 5
    assert all(done.row.clipped.keys() == {"b"} and done.row.clipped["b"] < 1 for done in one)
    assert all(done.row.capped == {"liar": (6000, done.limit)} and done.limit == 600 for done in one)
    assert {key[0] for key in scratch.objects} == {5} and {key[0] for key in kept.objects} >= {2, 4, 5}
    assert {path.name for path in folders[0].published_states.iterdir()} == {"5-whole.bin"}
    assert not folders[0].state(5).exists() and folders[1].state(5).exists()


@pytest.mark.parametrize("server_round", [2, 3, 5])
@pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "median"])
def test_a_round_that_was_closed_and_not_published_is_closed_again_the_same(
    learning: Learning, tmp_path: Path, server_round: int, rule: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    learning = replace(learning, safety=msgspec.structs.replace(learning.safety, rule=rule))
    seen = []
    for published in (0, server_round - 1, server_round - 1):
        # Each is a life of the coordinator: the first ends before a row says that the round is over, the second too.
        with contextlib.closing(SqliteLedger(folder.ledger)) as ledger:
            model = GlobalModel(learning, Archive(folder, ledger, 2, ledger.rounds()), published)
            for number in range(published + 1, server_round + 1):
                plan = begun(model, number)
                ledger.put_plan(plan)
                done = closed(model, folder, plan, learning.safety)
                if number < server_round:
                    model.publish(done.objects, done.row)
            seen.append((plan, done))
    assert seen[0] == seen[1] == seen[2]
    # Where all count the same, nobody's claim is cut.
    assert all(bool(done.row.capped) == (rule == "mean") for _, done in seen)


def test_scratch_goes_on_from_a_state_that_its_owner_wrote(learning: Learning, tmp_path: Path) -> None:
    wanted = five_rounds(learning, ScratchKeeping(RunFolder(tmp_path / "one")))
    folder = RunFolder(tmp_path / "other")
    model = GlobalModel(learning, ScratchKeeping(folder), 0)
    for server_round in (1, 2, 3):
        done = closed(model, folder, begun(model, server_round), learning.safety)
        model.publish(done.objects, done.row)
    save_state(folder.state(3), model.state)
    model = GlobalModel(learning, ScratchKeeping(folder), 3)
    for server_round in (4, 5):
        done = closed(model, folder, begun(model, server_round), learning.safety)
        assert (done.objects, done.row) == (wanted[server_round - 1].objects, wanted[server_round - 1].row)
    with pytest.raises(RunError, match="the exact state cannot be read"):
        GlobalModel(learning, ScratchKeeping(folder), 4)
