# SPDX-License-Identifier: Apache-2.0
"""What a replica holds, as numbers on the disk: base plus published state, always at a version that it can prove by its
digest. No torch: `edge_client.worker.train.replica` makes a model of it that trains, `edge_client.worker.compiled` one
that only answers.

It lies in a folder: the state file, written beside and renamed, and the base's master copy where seeds are refreshed. A
restarted worker continues from there. What lies there is believed as far as its hashes and the plan's digests say; the
rest is dropped, down to the checkpoint if need be, and comes again like on a fresh node. Only a wrong checkpoint is
refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import BaseDamaged, ExactnessError, WireError
from fedcore.model.base import Base
from fedcore.model.snapshot import take_snapshot
from fedcore.model.state import PublishedState, model_digest
from fedcore.round.artefact import read_artefact
from fedcore.round.checksums import checksums
from fedcore.round.plan import ObjectKind, Plan, published_digest
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.initial import start_value

__all__ = ["Holding"]


class Holding:
    """One node's copy of the run's numbers.

    Args:
        plan: Any plan of the run: schema, base, task and seeds.
        model_folder: The node's copy of the checkpoint.
        folder: Where state and master copies live.
        artefact: File of the run's artefact, where the plan names one.

    Raises:
        ModelError: The folder does not fit the plan.
        ExactnessError: This machine's projections or base differ from the plan's.
        ArtefactDamaged: The run's artefact is not here.
    """

    def __init__(self, plan: Plan, model_folder: Path, folder: Path, artefact: Path | None = None) -> None:
        self.schema, self.training = plan.model_schema, plan.training
        self._run_seed, self._folder = plan.training.run_seed, folder
        self._state_path = folder / "state.bin"
        folder.mkdir(parents=True, exist_ok=True)
        self.artefact = _artefact_of(plan, artefact)
        """What the run's artefact holds."""
        self.check_projections(plan)
        self.base = Base(Checkpoint(model_folder), plan.model_schema, plan.base_kind, folder / "base")
        self.base_changed: Callable[[], object] = lambda: None
        """Called when weights of the base are others than before."""
        self._dropped = False
        self._make_sound(plan)
        self.state = self._stored_state(plan)
        self.start = {s.name: start_value(self.base.checkpoint, s, self._run_seed) for s in self.schema.tensors}
        """What tensors trained whole hold before the first round."""

    def digest(self) -> str:
        """The model digest of what is held now."""
        return model_digest(self.base.digest(), self.state)

    def adopt(self, path: Path, generation: int, kind: ObjectKind, digest: str) -> None:
        """Take a published object from a file, after merging what the new generation says is finished.

        Args:
            path: The file; its SHA-256 was checked when it came.
            generation: Of the object.
            kind: Of the object. A whole state of generation 0 is put on the checkpoint, whatever was merged before.
            digest: What the replica's must be then.

        Raises:
            ExactnessError: The result is not the model that the coordinator published, or what it had to be put on is
                damaged. What is wrong is dropped from the disk, and this replica has to be loaded again: it then holds
                what it can prove, at the least the checkpoint. A file that cannot be read changes nothing.
        """
        self.require_held()
        try:
            state = self._taken(path, generation, kind)
        except WireError as error:
            raise ExactnessError(f"the published state cannot be read: {error}", place=path.name) from None
        except BaseDamaged:
            self.drop(base=True)
            raise
        if model_digest(self.base.digest(), state) != digest:
            # The file is right. What a difference was added to may be only the state; for the others it is the base.
            self.drop(base=kind != "difference")
            raise ExactnessError("the published state leads to another model than the coordinator's", place=path.name)
        state.write(self._state_path)
        self.state = state

    def start_values(self) -> dict[str, NDArray[np.float32]]:
        """Each whole tensor's value at the held version: initial plus published, one float32 addition; of shared ones
        only."""
        out = {}
        for spec in self.training.shared_tensors(self.schema):
            learned = self.state.entries[spec.name].values().reshape(spec.shape)
            out[spec.name] = np.add(self.start[spec.name], learned, dtype=np.float32)
        return out

    def merge_until(self, generation: int) -> None:
        """Merge the state into the base, where a generation ends with it.

        Raises:
            ExactnessError: The generation is neither this one nor the next.
            BaseDamaged: The master copy is damaged.
        """
        if generation == self.base.generation:
            return
        if self.base.generation + 1 != generation:
            raise ExactnessError(f"generation {generation} does not follow {self.base.generation}")
        self.base.merge(self.state, generation)
        self.base_changed()
        self.state = self.state.refreshed(self.training.at(generation), self.schema)

    def drop(self, *, base: bool) -> None:
        """Forget what is held: the state, and the base too where it cannot be trusted."""
        self._dropped = True
        self._state_path.unlink(missing_ok=True)
        if base:
            self.base.reset()

    def require_held(self) -> None:
        """Return if nothing was dropped.

        Raises:
            ExactnessError: Something was.
        """
        if self._dropped:
            raise ExactnessError("this replica was not the run's and has to be loaded again")

    def check_projections(self, plan: Plan) -> None:
        """Return if this machine makes the plan's projections.

        Raises:
            ExactnessError: It makes others; the place is the layer.
        """
        ours = checksums(plan.training, self.schema, self.artefact)
        for spec, own, checksum in zip(self.schema.layers, ours, plan.checksums, strict=False):
            if own != checksum:
                raise ExactnessError("this machine's projection differs from the coordinator's", place=spec.name)

    def _taken(self, path: Path, generation: int, kind: ObjectKind) -> PublishedState:
        if kind == "snapshot":
            state = take_snapshot(path, self.base, self.training.at(generation))
            self.base_changed()
            return state
        if kind == "whole" and generation == 0 and self.base.generation > 0:
            self.base.reset()
            self.base_changed()
        self.merge_until(generation)
        return PublishedState.read(path, self._shapes, previous=self.state if kind == "difference" else None)

    def _make_sound(self, plan: Plan) -> None:
        """Have a base that is not damaged, and the plan's where the plan says; at the least the checkpoint.

        Raises:
            ExactnessError: The checkpoint is not the run's.
        """
        try:
            self.base.store()
            if self.base.generation <= plan.training.generation and self._base_is_right(plan):
                return
        except BaseDamaged:
            pass
        self.base.reset()
        self.base.store()
        if not self._base_is_right(plan):
            raise ExactnessError(
                "this model's weights are not those of the run",
                place=str(self.base.checkpoint.folder),
                remedy="copy the coordinator's model folder to this machine",
            )

    def _base_is_right(self, plan: Plan) -> bool:
        digest = self.base.digest()
        if self.base.generation == plan.training.generation:
            return digest == plan.base_digest
        return self.base.generation > 0 or plan.checkpoint_digest in ("", digest)

    def _stored_state(self, plan: Plan) -> PublishedState:
        """The state on disk, if it is one of this base, not ahead of the plan and, where the plan says, the published
        one; else nothing learned."""
        generation = self.base.generation
        training = self.training.at(generation)
        try:
            state = PublishedState.read(self._state_path, self._shapes)
            if generation and state.seeds == self.training.at(generation - 1).seeds:
                # Killed between the merge and what was to come after it.
                state = state.refreshed(training, self.schema)
            ahead = state.version > plan.version
            right = published_digest(plan, state.version, generation) in (None, model_digest(self.base.digest(), state))
            if right and not ahead and state.subspaces == (training.seeds, training.rank, training.rows_from):
                return state
        except FileNotFoundError:
            pass
        except (WireError, ExactnessError):
            # Torn, or another run's: fetched again, like on a fresh node.
            pass
        self._state_path.unlink(missing_ok=True)
        return PublishedState.zero(training, self.schema)

    @property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        return self.training.shapes(self.schema)


def _artefact_of(plan: Plan, path: Path | None) -> Any:
    try:
        return read_artefact(path, plan.training, plan.model_schema)
    except WireError as error:
        raise ExactnessError(f"the run's artefact cannot be read: {error}", place=path.name if path else "") from None
