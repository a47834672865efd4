# SPDX-License-Identifier: Apache-2.0
"""What a run has learned: the base, the exact state on it, and the objects that are published of both.

No wire and no clock here: the loop in `coordinator.run.service` says when a round begins and closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coordinator.run.archive import Archive, listed
from coordinator.run.prepare import Prepared
from coordinator.store.folder import RunFolder, load_state, save_state
from coordinator.store.ledger import Ledger
from fedcore.errors import BaseDamaged
from fedcore.methods import server_half
from fedcore.model.base import Base
from fedcore.model.state import ExactState, PublishedState, model_digest
from fedcore.model.update import WeightedUpdate
from fedcore.round.artefact import read_artefact
from fedcore.round.checksums import checksums
from fedcore.round.plan import ArtefactObject, Plan, StateObject
from fedcore.round.training import Training
from fedcore.weights.checkpoint import Checkpoint
from fedcore.wire.files import manifest_of

__all__ = ["GlobalModel"]


class GlobalModel:
    """The model of a run, as an earlier life of it left it.

    Args:
        prepared: Job, schema, model.
        folder: The run's.
        ledger: The run's.

    Attributes:
        archive: What is published.

    Raises:
        FedkrsoError: The model cannot serve as the base, or what is on disk is not the run's.
    """

    def __init__(self, prepared: Prepared, folder: RunFolder, ledger: Ledger) -> None:
        job, rounds = prepared.job, len(ledger.rounds())
        self._job, self._schema, self._folder, self._ledger = job, prepared.schema, folder, ledger
        self._half = server_half(job.method, prepared.artefact)
        first = self._half.training(1, job.seed)
        self._artefact = read_artefact(folder.artefact, first, self._schema)
        self._base = Base(Checkpoint(prepared.model_folder), self._schema, job.model.base, folder.base)
        self.archive = Archive(folder, ledger, job.round.keep_published)
        opened = ledger.plan(rounds + 1)
        self.archive.sound(self._base, opened or ledger.plan(rounds), rounds)
        if self._base.generation == 0:
            # Known from before the first merge.
            ledger.put_fact("checkpoint_digest", self._base.digest())
        self._checkpoint_digest = ledger.fact("checkpoint_digest", str) or ""
        self._state = load_state(folder.state(rounds)) if rounds else ExactState.zero(first, self._schema)
        self._published = self._state.publish()
        if opened is not None:
            # The round was open: its state is in the plan's subspaces, also when it is the first of a generation.
            self._state = self._opened(opened.training)

    def begin(self, server_round: int, chunk_bytes: int, damaged: Callable[[str], None]) -> None:
        """Stand where a round starts: where seeds change, with what was learned merged into the base, and a snapshot of
        it if one is due.

        Args:
            server_round: Which.
            chunk_bytes: Of transfers.
            damaged: Told of files that had to be made anew.
        """
        training = self._half.training(server_round, self._job.seed)
        if training.generation != self._base.generation:
            self._merge(training.generation, damaged)
        self.archive.add_snapshot(self._base, self._start_state(training), chunk_bytes)
        self._state = self._opened(training)

    def plan(
        self, server_round: int, version: int, cohort: tuple[str, ...], deadline_at: float, chunk_bytes: int
    ) -> Plan:
        """A round's plan.

        Args:
            server_round: Which.
            version: Published last.
            cohort: Who is invited.
            deadline_at: Unix time in seconds.
            chunk_bytes: Of transfers.
        """
        training = self._half.training(server_round, self._job.seed)
        return Plan(
            round=server_round,
            phase="train",
            cohort=cohort,
            deadline_at=deadline_at,
            task=self._job.task,
            base_kind=self._job.model.base,
            base_digest=self._base.digest(),
            model_schema=self._schema,
            checksums=checksums(training, self._schema, self._artefact),
            training=training,
            version=version,
            chunk_bytes=chunk_bytes,
            objects=listed(self.archive.objects, version, training.generation),
            start_digest=self._start_digest(training),
            checkpoint_digest=self._checkpoint_digest,
            artefact=ArtefactObject(manifest_of(self._folder.artefact, chunk_bytes)) if training.artefact else None,
        )

    def close(self, plan: Plan, updates: Sequence[WeightedUpdate], chunk_bytes: int) -> list[StateObject]:
        """Take a round's updates into the state, and write its published state and the state to disk.

        Args:
            plan: The round's.
            updates: Of the participants, with their weights.
            chunk_bytes: Of transfers.

        Returns:
            The published state's objects, all with the digest of the model; they count once they are in the ledger.
        """
        self._state = self._half.aggregate(self._state, plan, updates)
        previous, self._published = self._published, self._state.publish()
        digest = model_digest(self._base.digest(), self._published)
        objects = []
        for whole in (True, False):
            if not whole and (previous.version == 0 or not self._published.follows(previous)):
                continue
            path = self._folder.published_state(plan.round, "whole" if whole else "difference")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._published.write(path, previous=None if whole else previous)
            base_version = None if whole else previous.version
            objects.append(
                StateObject(plan.round, plan.training.generation, base_version, digest, manifest_of(path, chunk_bytes))
            )
        save_state(self._folder.state(plan.round), self._state)
        return objects

    def _merge(self, generation: int, damaged: Callable[[str], None]) -> None:
        try:
            self._base.merge(self._published, generation)
        except BaseDamaged as error:
            damaged(f"{error.one_line()}: made anew from what was published")
            plan = self._ledger.plan(self._published.version)
            assert plan is not None, "a merge comes after a round"
            self.archive.rebuild(self._base, plan)
            self._base.merge(self._published, generation)

    def _opened(self, training: Training) -> ExactState:
        """The exact state that a round starts from: the same, or zero layers under new seeds."""
        return self._state if self._state.seeds == training.seeds else self._state.refreshed(training, self._schema)

    def _start_state(self, training: Training) -> PublishedState:
        """The published state in a round's subspaces."""
        if self._published.seeds == training.seeds:
            return self._published
        return self._published.refreshed(training, self._schema)

    def _start_digest(self, training: Training) -> str:
        """The model digest that a round starts from; empty before its merge."""
        if training.generation != self._base.generation:
            return ""
        return model_digest(self._base.digest(), self._start_state(training))
