# SPDX-License-Identifier: Apache-2.0
"""Published objects: what a plan lists for those who were away, what stays on disk, and the base made anew from them.

With refreshed seeds, whoever was away needs the end of every generation that it missed, or a snapshot. The list goes
back from the present to the last snapshot (or to the checkpoint), and beyond the snapshot as long as those older ends
together weigh less than it does. When the ends after the last snapshot weigh as much as another one would, another is
made. So the list, the disk and what anybody has to fetch stay bounded, however many generations there were."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from coordinator.job import Job
from coordinator.messages.publisher import Key, Objects, key_of
from coordinator.run.keeping import LAST_ROUNDS, norms_of
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import Ledger, RoundRow
from coordinator.store.statefile import load_state, save_state
from fedcore.errors import BaseDamaged, ModelError, RunError, WireError
from fedcore.model.base import Base
from fedcore.model.snapshot import snapshot_bytes, take_snapshot, write_snapshot
from fedcore.model.state import ExactState, PublishedState, model_digest
from fedcore.round.plan import Plan, StateObject
from fedcore.wire.files import manifest_of

__all__ = ["Archive", "listed", "snapshot_is_due"]

_NOISE_KEY = "noise_key"


def listed(objects: Objects, version: int, generation: int, kept: int = 1) -> tuple[StateObject, ...]:
    """What a plan says is there, oldest first and the present version last.

    Args:
        objects: All published objects.
        version: The present one.
        generation: Of the plan.
        kept: Newest versions that are listed.
    """
    ends, snapshot = _ends(objects, generation), _last_snapshot(objects, generation)
    start = snapshot.generation if snapshot is not None else 0
    chosen = {ends[g] for g in range(start, generation)}
    if snapshot is not None:
        chosen.add(snapshot)
        room = snapshot.manifest.size_bytes
        for older in range(start - 1, -1, -1):
            room -= ends[older].manifest.size_bytes if older in ends else room
            if room <= 0:
                break
            chosen.add(ends[older])
    chosen |= {obj for obj in objects.values() if version - kept < obj.version <= version and obj.kind != "snapshot"}
    return tuple(sorted(chosen, key=lambda o: (o.version, o.generation, o.kind)))


def snapshot_is_due(objects: Objects, generation: int, weigh: Callable[[int], int]) -> bool:
    """Whether a base that was just merged should be written as a snapshot.

    Args:
        objects: All published objects.
        generation: Of the base.
        weigh: What a first snapshot would weigh, given what the ends weigh.
    """
    snapshot = _last_snapshot(objects, generation)
    start = snapshot.generation if snapshot is not None else 0
    if start == generation:
        return False
    ends = _ends(objects, generation)
    chain = sum(ends[g].manifest.size_bytes for g in range(start, generation))
    return chain >= (snapshot.manifest.size_bytes if snapshot is not None else weigh(chain))


def _ends(objects: Objects, generation: int) -> dict[int, StateObject]:
    """The last whole state of each finished generation."""
    wholes = [obj for obj in objects.values() if obj.kind == "whole" and obj.generation < generation]
    return {obj.generation: obj for obj in sorted(wholes, key=lambda o: o.version)}


def _last_snapshot(objects: Objects, generation: int) -> StateObject | None:
    snapshots = [obj for obj in objects.values() if obj.kind == "snapshot" and obj.generation <= generation]
    return max(snapshots, key=lambda o: o.generation, default=None)


class Archive:
    """A run's published objects and states, kept as `coordinator.run.keeping.Keeping` says: rows in the ledger, files
    in the folder.

    Args:
        folder: The run's.
        ledger: The run's.
        keep_published: Versions that stay whatever happens.
        rows: Of the rounds that an earlier life of the run closed.
        keep_updates: Closed rounds whose updates stay.
        listed: Newest versions that plans list.
    """

    def __init__(
        self,
        folder: RunFolder,
        ledger: Ledger,
        keep_published: int,
        rows: Sequence[RoundRow],
        keep_updates: int = 1,
        listed: int = 1,
    ) -> None:
        self.folder, self._ledger, self._listed = folder, ledger, listed
        self._keep_published, self._keep_updates = keep_published, keep_updates
        self.objects: dict[Key, StateObject] = {key_of(obj): obj for obj in ledger.published_states()}
        self._weight, self._rows = 0, list(rows[-LAST_ROUNDS:])

    @classmethod
    def of(cls, folder: RunFolder, ledger: Ledger, job: Job, rows: Sequence[RoundRow]) -> Archive:
        """As a job wants it. Where rounds are buffered, updates of earlier ones still count, and who fetches a version
        that is not the newest any more sees in the newest plan that it may go on.

        Args:
            folder: The run's.
            ledger: The run's.
            job: The run's.
            rows: Of the rounds that an earlier life of the run closed.
        """
        settings = job.round
        keep_updates = settings.keep_updates + job.staleness.most
        listed = settings.keep_published if settings.buffered else 1
        return cls(folder, ledger, settings.keep_published, rows, keep_updates, listed)

    def path(self, obj: StateObject) -> Path:
        """An object's file."""
        return self.folder.published_state(obj.version, obj.kind)

    def resume(self, base: Base, published: int) -> Plan | None:
        """See `Keeping`: what is damaged is made anew from what was published.

        Raises:
            ModelError: The checkpoint is not the one that the run began with.
            RunError: The base cannot be made anew.
        """
        opened = self._ledger.plan(published + 1)
        self._sound(base, opened or self._ledger.plan(published), published)
        if base.generation == 0:
            # Known from before the first merge.
            self._ledger.put_fact("checkpoint_digest", base.digest())
        return opened

    def noise_key(self, server_round: int) -> bytes:
        """See `Keeping`."""
        drawn, key = self._ledger.fact(_NOISE_KEY, tuple[int, bytes]) or (0, b"")
        if drawn != server_round:
            key = secrets.token_bytes(32)
            self._ledger.put_fact(_NOISE_KEY, (server_round, key))
        return key

    def norms(self, alike: Callable[[int], bool]) -> list[float]:
        """See `Keeping`."""
        return norms_of(self._rows, alike)

    def checkpoint_digest(self) -> str:
        """See `Keeping`; empty in a run of before it was kept."""
        return self._ledger.fact("checkpoint_digest", str) or ""

    def load_state(self, version: int) -> ExactState:
        """See `Keeping`."""
        return load_state(self.folder.state(version))

    def save_state(self, state: ExactState) -> None:
        """See `Keeping`."""
        save_state(self.folder.state(state.version), state)

    def publish(self, objects: list[StateObject], row: RoundRow) -> None:
        """See `Keeping`: in the ledger with the round's row, both or neither."""
        self._ledger.put_published(objects, row)
        if row.privacy is not None:
            # Nobody can take the noise away again, who gets hold of the ledger later.
            self._ledger.put_fact(_NOISE_KEY, (0, b""))
        self.objects |= {key_of(obj): obj for obj in objects}
        self._rows = [*self._rows, row][-LAST_ROUNDS:]
        self.folder.state(row.round - 2).unlink(missing_ok=True)

    def listed(self, version: int, generation: int) -> tuple[StateObject, ...]:
        """See `Keeping`: all that somebody may need who was away."""
        return listed(self.objects, version, generation, self._listed)

    def begin(self, base: Base, state: PublishedState, chunk_bytes: int) -> None:
        """See `Keeping`: write a snapshot of a base that was just merged, if one is due; file first, then the ledger.
        Repeating it changes nothing."""

        def weigh(chain_bytes: int) -> int:
            # A snapshot gets heavier as weights move on: weighed again only when the ends weigh as much as it did.
            if chain_bytes >= self._weight:
                self._weight = snapshot_bytes(base)
            return self._weight

        if not snapshot_is_due(self.objects, base.generation, weigh):
            return
        path = self.folder.published_state(state.version, "snapshot")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_snapshot(path, base, state)
        digest = model_digest(base.digest(), state)
        obj = StateObject(state.version, base.generation, None, digest, manifest_of(path, chunk_bytes), snapshot=True)
        self._ledger.put_objects([obj])
        self.objects[key_of(obj)] = obj

    def leading_to(self, version: int) -> tuple[StateObject, ...]:
        """What it takes to build a version's model again; nothing for a version that is not there any more.

        Args:
            version: A round.
        """
        plan = self._ledger.plan(version)
        if plan is None or (version, "whole") not in self.objects:
            return ()
        return listed(self.objects, version, plan.training.generation)

    def tidy(self, plan: Plan, reading: Collection[StateObject]) -> None:
        """Drop what nobody can need any more once a plan is out: rows first, then files, also those that a kill left
        behind.

        Args:
            plan: The present one; who follows an older one gets it too, and then asks for what it lists.
            reading: What this machine still reads, or may have to export.
        """
        keep = {key_of(obj) for obj in (*plan.objects, *reading)}
        keep |= {key for key in self.objects if key[0] > plan.version - self._keep_published}
        self._ledger.drop_objects([obj for key, obj in self.objects.items() if key not in keep])
        for gone in [key for key in self.objects if key not in keep]:
            del self.objects[gone]
        wanted = {self.path(obj).name for obj in self.objects.values()}
        for file in self.folder.published_states.glob("*"):
            if file.name not in wanted:
                file.unlink()
        for updates in self.folder.updates.glob("*"):
            # A round whose plan is out follows states that are in the ledger.
            if updates.name.isdecimal() and int(updates.name) < plan.round - self._keep_updates:
                shutil.rmtree(updates)

    def _sound(self, base: Base, plan: Plan | None, published: int) -> None:
        """Make sure that a base is the one of the last plan in the ledger (None before the first)."""
        generation = plan.training.generation if plan is not None else 0
        # After a round is closed the next merge may be there, whose round was not announced yet.
        ahead = int(plan is not None and plan.round <= published)
        with contextlib.suppress(BaseDamaged):
            if generation <= base.generation <= generation + ahead and self._is_of(base, plan):
                return
        if plan is None:
            base.reset()
        elif not (ahead and self._merged(base, plan)):
            self._rebuild(base, plan)

    def _merged(self, base: Base, plan: Plan) -> bool:
        """Make a base the one of the merge after a closed round, if there is a snapshot of it: what the round itself
        stood on may be dropped then, and the plan that knows the base is not in a backup."""
        training = plan.training
        snapshot = _last_snapshot(self.objects, training.generation + 1)
        if snapshot is None or snapshot.generation <= training.generation:
            return False
        with contextlib.suppress(OSError, WireError):
            state = take_snapshot(self.path(snapshot), base, training.at(snapshot.generation))
            return model_digest(base.digest(), state) == snapshot.digest
        return False

    def _is_of(self, base: Base, plan: Plan | None) -> bool:
        digest = base.digest()
        return plan is None or base.generation != plan.training.generation or digest == plan.base_digest

    def rebuild(self, base: Base, version: int) -> None:
        """See `Keeping`: from the checkpoint and what was published.

        Raises:
            ModelError: The checkpoint is not the one that the run began with.
            RunError: What was published is damaged too.
        """
        plan = self._ledger.plan(version)
        assert plan is not None, "a merge comes after a round"
        self._rebuild(base, plan)

    def _rebuild(self, base: Base, plan: Plan) -> None:
        training, schema = plan.training, plan.model_schema
        ends, snapshot = _ends(self.objects, training.generation), _last_snapshot(self.objects, training.generation)
        base.reset()
        try:
            if snapshot is not None:
                take_snapshot(self.path(snapshot), base, training.at(snapshot.generation))
            shapes = training.shapes(schema)
            for generation in range(base.generation, training.generation):
                base.merge(PublishedState.read(self.path(ends[generation]), shapes), generation + 1)
        except (KeyError, OSError, WireError) as error:
            raise RunError(
                f"the base is damaged, and so is what it was made from: {error}", place=str(self.folder.root)
            ) from None
        if base.digest() == plan.base_digest:
            return
        if base.generation and plan.checkpoint_digest in ("", self._checkpoint(base)):
            raise RunError("the base cannot be made anew from what was published", place=str(self.folder.root))
        remedy = "put the model folder back as it was when the run began"
        raise ModelError(
            "these weights are not those that the run began with", place=str(base.checkpoint.folder), remedy=remedy
        )

    def _checkpoint(self, base: Base) -> str:
        base.reset()
        return base.digest()
