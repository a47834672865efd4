# SPDX-License-Identifier: Apache-2.0
"""A replica that was away, was killed or lost what it had ends at the digest of one that never missed a round, and
never trains before."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from leader import Leader

from edge_client.worker.model.loading import describe
from edge_client.worker.train.replica import Replica
from fedcore.config.sections import TaskSection
from fedcore.errors import ExactnessError
from fedcore.round.plan import Plan, objects_needed
from fedcore.weights.checkpoint import Checkpoint

TASK = TaskSection(kind="text-classification", labels=("a", "b"), max_length=16)
ROUNDS = 7


class Story:
    """A run of seven rounds with new seeds in each: all plans, all objects, and replicas of it."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        schema = describe(Checkpoint(model), TASK, ())
        leader = Leader(root / "run", model, schema, TASK)
        plan = leader.start()
        self.plans = [plan]
        (root / "objects").mkdir()
        for _ in range(ROUNDS):
            for obj in plan.objects:
                # The coordinator drops what nobody needs any more; this story is read in any order.
                shutil.copy(leader.path(obj), self.path(obj.manifest.sha256))
            plan = leader.advance(plan)
            self.plans.append(plan)
        for obj in plan.objects:
            shutil.copy(leader.path(obj), self.path(obj.manifest.sha256))
        leader.kill()

    def path(self, sha256: str) -> Path:
        return self.root / "objects" / sha256

    def replica(self, own: Path, plan: Plan, *, mapped: bool = False, model: Path | None = None) -> Replica:
        return Replica(plan, model or self.model, own, torch.device("cpu"), torch.float32, mapped=mapped)

    def follow(self, own: Path, plan: Plan, *, mapped: bool = False) -> tuple[Replica, list[str], list[str]]:
        """Do as a session does until the replica stands where the round starts; the kinds of objects taken, and what
        failed."""
        taken: list[str] = []
        failed: list[str] = []
        replica = self.replica(own, plan, mapped=mapped)
        while True:
            needed = objects_needed(plan, replica.state.version, replica.base.generation)
            assert needed is not None and len(failed) < 4, failed
            try:
                if not needed:
                    replica.open(plan)
                    assert replica.digest() == plan.start_digest and replica.base.generation == plan.training.generation
                    return replica, taken, failed
                obj = needed[0]
                replica.adopt(self.path(obj.manifest.sha256), obj.generation, obj.kind, obj.digest)
                taken.append(obj.kind)
            except ExactnessError as error:
                failed.append(error.message)
                replica = self.replica(own, plan, mapped=mapped)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    from transformers import LlamaConfig

    from edge_client.worker.trace.outline import Outline, write_random_checkpoint

    root = tmp_path_factory.mktemp("story")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        dtype="bfloat16",
        pad_token_id=0,
    )
    config.save_pretrained(root / "model")
    write_random_checkpoint(Outline(root / "model", TASK), root / "model" / "model.safetensors", 0)
    return Story(root, root / "model")


@pytest.fixture
def at(story: Story, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """The folder of a replica that took part in every round up to one, and has opened that."""

    def make(server_round: int) -> Path:
        own = tmp_path / f"at-{server_round}"
        story.follow(own, story.plans[server_round - 1])
        return own

    yield make


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def logits(replica: Replica) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = replica.model.module(input_ids=torch.arange(1, 13)[None]).logits
    return found


def newest(own: Path) -> Path:
    return max((own / "base").iterdir(), key=lambda path: int(path.name))


@pytest.mark.parametrize("mapped", [False, True])
def test_always_there_away_and_fresh_are_one_model(story: Story, tmp_path: Path, mapped: bool) -> None:
    for plan in story.plans:
        always, _, failed = story.follow(tmp_path / "always", plan, mapped=mapped)
        assert not failed
        if plan.round == 3:
            shutil.copytree(tmp_path / "always", tmp_path / "away")
    last = story.plans[-1]
    assert any(obj.snapshot for obj in last.objects)
    away, by_ends, _ = story.follow(tmp_path / "away", last, mapped=mapped)
    fresh, by_snapshot, _ = story.follow(tmp_path / "fresh", last, mapped=mapped)
    assert "snapshot" in by_snapshot and by_ends
    # Not only what lies on disk: the models compute the same.
    assert torch.equal(logits(always), logits(away)) and torch.equal(logits(always), logits(fresh))
    assert always.digest() == away.digest() == fresh.digest()


def test_one_missed_generation_costs_no_snapshot(story: Story, at: Callable[[int], Path]) -> None:
    _, taken, failed = story.follow(at(ROUNDS), story.plans[ROUNDS])
    assert taken == ["whole"] and not failed


def test_killed_between_the_merge_and_what_follows(story: Story, at: Callable[[int], Path]) -> None:
    """The base is of the new generation, the state on disk still of the old: a restart finds itself where the round
    starts."""
    own, plan = at(4), story.plans[3]
    replica = story.replica(own, plan)
    assert (replica.state.version, replica.base.generation) == (3, 3) and replica.digest() == plan.start_digest
    _, taken, failed = story.follow(own, plan)
    assert not taken and not failed


def test_killed_between_a_snapshot_and_its_state(
    story: Story, at: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, last = at(2), story.plans[-1]

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    replica = story.replica(own, last)
    obj = objects_needed(last, replica.state.version, replica.base.generation)[0]  # type: ignore[index]
    assert obj.snapshot
    with monkeypatch.context() as patch:
        patch.setattr("fedcore.model.state.PublishedState.write", killed)
        with pytest.raises(KeyboardInterrupt):
            replica.adopt(story.path(obj.manifest.sha256), obj.generation, obj.kind, obj.digest)
    _, _, failed = story.follow(own, last)
    assert not failed


@pytest.mark.parametrize("how", ["cut", "flipped", "older"])
def test_a_state_that_is_not_the_published_one_is_dropped(story: Story, at: Callable[[int], Path], how: str) -> None:
    own, plan = at(4), story.plans[3]
    state = own / "state.bin"
    if how == "cut":
        state.write_bytes(state.read_bytes()[:-5])
    elif how == "flipped":
        # Numbers in a head, not the compressed stream's own checksum: read as a sound file with another content.
        replica = story.replica(own, plan)
        wrong = replica.state.entries["score.weight"]
        wrong.q[0, 0] += 1
        replica.state.write(state)
    else:
        shutil.copy(story.path(next(o for o in story.plans[1].objects if o.version == 1).manifest.sha256), state)
    replica = story.replica(own, plan)
    assert (replica.state.version, replica.base.generation) == (0, 3)
    with pytest.raises(ExactnessError, match="starts from version 3"):
        replica.open(plan)
    _, taken, failed = story.follow(own, plan)
    assert taken and not failed


def test_damaged_weights_of_the_checkpoint_are_made_anew(story: Story, at: Callable[[int], Path]) -> None:
    own = at(1)
    flip(own / "base" / "0" / "weights.safetensors")
    _, taken, failed = story.follow(own, story.plans[0])
    assert not taken and not failed


@pytest.mark.parametrize("server_round", [1, 5])
def test_a_wrong_checkpoint_is_refused_at_once(story: Story, tmp_path: Path, server_round: int) -> None:
    shutil.copytree(story.model, tmp_path / "model")
    flip(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ExactnessError, match="not those of the run") as error:
        story.replica(tmp_path / "own", story.plans[server_round - 1], model=tmp_path / "model")
    assert "copy the coordinator's model folder" in error.value.one_line() and error.value.exit_code == 7


@pytest.mark.parametrize("how", ["table", "flipped", "weights", "other"])
def test_a_damaged_base_begins_again_at_the_checkpoint(story: Story, at: Callable[[int], Path], how: str) -> None:
    own, plan = at(5), story.plans[4]
    folder = newest(own)
    if how == "table":
        (folder / "masters.json").write_bytes((folder / "masters.json").read_bytes()[:40])
    elif how == "flipped":
        # Weights made before are still right: noticed only where the master copy is used, at the next merge.
        flip(folder / "0.bin")
        assert story.replica(own, plan).digest() == plan.start_digest
        plan = story.plans[5]
    elif how == "weights":
        flip(folder / "weights.safetensors")
        flip(folder / "0.bin")
    else:
        # Sound in itself, but another run's.
        replica = story.replica(own, plan)
        replica.base.replace(
            4, lambda layer: iter([replica.base.master(layer).view("<u4").__rshift__(16).astype("<u2") ^ 1])
        )
    replica, taken, failed = story.follow(own, plan)
    assert taken and len(failed) == (how == "flipped"), failed
    assert replica.digest() == plan.start_digest
    restarted = story.replica(own, plan)
    assert restarted.digest() == plan.start_digest


def test_a_base_that_went_wrong_before_is_found_out_by_the_next_object(story: Story, at: Callable[[int], Path]) -> None:
    """The plan has digests of its own generation only: at another one the first whole state tells."""
    own = at(4)
    replica = story.replica(own, story.plans[3])
    replica.base.replace(
        3, lambda layer: iter([replica.base.master(layer).view("<u4").__rshift__(16).astype("<u2") ^ 1])
    )
    _, taken, failed = story.follow(own, story.plans[5])
    assert failed == ["the published state leads to another model than the coordinator's"] and taken


def test_what_is_dropped_is_not_used_again(story: Story, at: Callable[[int], Path]) -> None:
    own, plan = at(4), story.plans[3]
    replica = story.replica(own, plan)
    wrong = msgspec.structs.replace(plan, start_digest="0" * 64)
    with pytest.raises(ExactnessError, match="not the published one"):
        replica.open(wrong)
    for use in (lambda: replica.open(plan), lambda: replica.adopt(own, 3, "whole", "")):
        with pytest.raises(ExactnessError, match="loaded again"):
            use()
    assert story.replica(own, plan).state.version == 0


def test_an_unreadable_object_changes_nothing(story: Story, at: Callable[[int], Path], tmp_path: Path) -> None:
    own, plan = at(5), story.plans[4]
    replica = story.replica(own, plan)
    for obj in story.plans[-1].objects:
        if obj.generation in (4, 5) or obj.snapshot:
            (tmp_path / "bad").write_bytes(story.path(obj.manifest.sha256).read_bytes()[:-9])
            with pytest.raises(ExactnessError, match="cannot be read"):
                replica.adopt(tmp_path / "bad", min(obj.generation, 4), obj.kind, obj.digest)
    assert replica.digest() == plan.start_digest
    replica.open(plan)


def test_one_that_is_ahead_of_the_run_begins_again(story: Story, at: Callable[[int], Path]) -> None:
    own = at(6)
    replica = story.replica(own, story.plans[0])
    assert (replica.state.version, replica.base.generation) == (0, 0)
    replica.open(story.plans[0])


def test_a_state_that_is_ahead_of_the_run_is_dropped(story: Story, at: Callable[[int], Path]) -> None:
    """Also where base and generation are the plan's: no plan leads back from it."""
    own, plan = at(1), story.plans[0]
    held = story.replica(own, plan).state
    held.write(own / "state.bin")
    assert story.replica(own, plan).state.version == 0 and (own / "state.bin").exists()
    dataclasses.replace(held, version=2).write(own / "state.bin")
    assert story.replica(own, plan).state.version == 0 and not (own / "state.bin").exists()
