# SPDX-License-Identifier: Apache-2.0
"""A replica: base plus published state as a torch model, always at a version that it can prove by its digest.

What the replica holds lies in its folder: the state file, written beside and renamed, and the base's master copy where
seeds are refreshed. A restarted worker continues from there. What lies there is believed as far as its hashes and the
plan's digests say; the rest is dropped, down to the checkpoint if need be, and comes again like on a fresh node. Only a
wrong checkpoint is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from edge_client.worker.methods import client_half
from edge_client.worker.methods.interface import trained_by
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.loading import build, install_weight
from edge_client.worker.train.local import LocalTensors
from fedcore.errors import BaseDamaged, ExactnessError, WireError
from fedcore.model.base import Base
from fedcore.model.snapshot import take_snapshot
from fedcore.model.state import PublishedState, model_digest
from fedcore.round.artefact import read_artefact
from fedcore.round.checksums import checksums
from fedcore.round.plan import ObjectKind, Plan, published_digest
from fedcore.round.training import Training
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.initial import start_value

__all__ = ["Replica"]


class Replica:
    """One node's copy of the run's model.

    Args:
        plan: Any plan of the run: schema, base, task and seeds.
        model_folder: The node's copy of the checkpoint.
        folder: Where state and master copies live.
        torch_device: Where to compute.
        compute_dtype: dtype of the products.
        mapped: Leave weights on disk and map them.
        artefact: File of the run's artefact, where the plan names one.

    Raises:
        ModelError: The folder does not fit the plan.
        ExactnessError: This machine's projections or base differ from the plan's.
        ArtefactDamaged: The run's artefact is not here.
    """

    model: BuiltModel

    def __init__(
        self,
        plan: Plan,
        model_folder: Path,
        folder: Path,
        torch_device: torch.device,
        compute_dtype: torch.dtype,
        mapped: bool = False,
        artefact: Path | None = None,
    ) -> None:
        self._schema, self.compute_dtype = plan.model_schema, compute_dtype
        self._run_seed, self._training = plan.training.run_seed, plan.training
        self._state_path = folder / "state.bin"
        folder.mkdir(parents=True, exist_ok=True)
        self._artefact = _artefact_of(plan, artefact)
        self._check_projections(plan)
        self.base = Base(Checkpoint(model_folder), plan.model_schema, plan.base_kind, folder / "base")
        self._mapped = mapped
        self._dropped = False
        self._make_sound(plan)
        self.state = self._stored_state(plan)
        self.model = build(self.base, plan.task, self._run_seed, torch_device, compute_dtype, mapped=mapped)
        self.half = client_half(self.model, plan.training, self._artefact)
        self._folder = folder
        self._local = self._local_of("", "")
        self._start = {s.name: start_value(self.base.checkpoint, s, self._run_seed) for s in self._schema.tensors}
        self._install()

    @property
    def layers(self) -> Mapping[str, SubspaceLinear]:
        """Target layers by canonical name."""
        return self.model.layers

    @property
    def tensors(self) -> Mapping[str, nn.Parameter]:
        """Tensors trained whole by canonical name."""
        return self.model.tensors

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
        self._require_held()
        try:
            state = self._taken(path, generation, kind)
        except WireError as error:
            raise ExactnessError(f"the published state cannot be read: {error}", place=path.name) from None
        except BaseDamaged:
            self._drop(base=True)
            raise
        if model_digest(self.base.digest(), state) != digest:
            # The file is right. What a difference was added to may be only the state; for the others it is the base.
            self._drop(base=kind != "difference")
            raise ExactnessError("the published state leads to another model than the coordinator's", place=path.name)
        state.write(self._state_path)
        self.state = state
        self._install()

    def _taken(self, path: Path, generation: int, kind: ObjectKind) -> PublishedState:
        if kind == "snapshot":
            state = take_snapshot(path, self.base, self._training.at(generation))
            self._install_base()
            return state
        if kind == "whole" and generation == 0 and self.base.generation > 0:
            self.base.reset()
            self._install_base()
        self._merge_until(generation)
        return PublishedState.read(path, self._shapes, previous=self.state if kind == "difference" else None)

    def become(self, run: str, node: str) -> None:
        """Hold what this node keeps for itself in this run, in methods where a part of the model stays local."""
        self._local = self._local_of(run, node)
        if self._local_parameters():
            self._install()

    def keep_local(self, server_round: int) -> None:
        """Write down what a trained round leaves on this node; nothing in methods where all is shared."""
        values = {
            name: parameter.detach().float().cpu().numpy() for name, parameter in self._local_parameters().items()
        }
        if values:
            self._local.save(server_round, values)

    def open(self, plan: Plan) -> None:
        """Stand where the plan's round starts: merge and take the new seeds if they changed.

        Raises:
            ExactnessError: The replica does not hold the plan's version; or it does not have the digest of it, and then
                what is wrong is dropped from the disk, and this replica has to be loaded again.
        """
        self._require_held()
        if self.state.version != plan.version:
            raise ExactnessError(
                f"the round starts from version {plan.version}, this replica holds {self.state.version}"
            )
        self._take_half(plan.training)
        self._check_projections(plan)
        try:
            self._merge_until(plan.training.generation)
        except BaseDamaged:
            self._drop(base=True)
            raise
        if self.base.digest() != plan.base_digest:
            self._drop(base=True)
            raise ExactnessError("the base differs from the plan's")
        if plan.start_digest not in ("", self.digest()):
            self._drop(base=False)
            raise ExactnessError(f"this replica's version {plan.version} is not the published one")
        # Whoever measures a run's last state has trained its last round, and the plan still names that one.
        self._install(before=plan.version + 1)

    def _take_half(self, training: Training) -> None:
        """Have the half of the plan's rounds, where a round of another kind came before them."""
        if type(training) is type(self._training):
            return
        half = trained_by(self.half)
        if type(training) is not type(self._training.learns) or half is self.half:
            raise ExactnessError(
                f"this replica was loaded for rounds of {self._training.method}, the plan is of {training.method}"
            )
        self._training, self.half = training, half

    def restore(self) -> None:
        """Drop the round's accumulators and trained values: back to the published state, and to what this node kept for
        itself."""
        self._install()

    def start_values(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        """Each whole tensor's value at the held version: initial plus published, one float32 addition; of shared ones
        only."""
        out = {}
        for spec in self._training.shared_tensors(self._schema):
            learned = self.state.entries[spec.name].values().reshape(spec.shape)
            out[spec.name] = np.add(self._start[spec.name], learned, dtype=np.float32)
        return out

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

    def _require_held(self) -> None:
        if self._dropped:
            raise ExactnessError("this replica was not the run's and has to be loaded again")

    def _drop(self, *, base: bool) -> None:
        """Forget what is held: the state, and the base too where it cannot be trusted."""
        self._dropped = True
        self._state_path.unlink(missing_ok=True)
        if base:
            self.base.reset()

    def _merge_until(self, generation: int) -> None:
        if generation == self.base.generation:
            return
        if self.base.generation + 1 != generation:
            raise ExactnessError(f"generation {generation} does not follow {self.base.generation}")
        self.base.merge(self.state, generation)
        self._install_base()
        self.state = self.state.refreshed(self._training.at(generation), self._schema)

    def _install_base(self) -> None:
        self.base.store()
        for spec in self._schema.layers:
            install_weight(self.layers[spec.name], self.base.layer(spec, mapped=self._mapped))

    def _install(self, before: int | None = None) -> None:
        """Compute with the held state, and with what this node kept of rounds before a given one."""
        self.half.install(self.state)
        parameters, local = self._local_parameters(), self._local.load(before)
        with torch.no_grad():
            for name, value in {**self._start, **self.start_values()}.items():
                self.tensors[name].copy_(torch.from_numpy(value))
            for name in parameters.keys() & local.keys():
                parameters[name].copy_(torch.from_numpy(local[name]))

    def _local_parameters(self) -> dict[str, nn.Parameter]:
        """What stays on this node: of the method, and the tensors trained whole that are not shared."""
        shared = {spec.name for spec in self._training.shared_tensors(self._schema)}
        return {**self.half.local, **{name: tensor for name, tensor in self.tensors.items() if name not in shared}}

    def _local_of(self, run: str, node: str) -> LocalTensors:
        training = self._training
        key = msgspec.msgpack.encode((run, node, training.method, training.rank, training.run_seed, self._schema))
        return LocalTensors(self._folder / "local", key)

    def _stored_state(self, plan: Plan) -> PublishedState:
        """The state on disk, if it is one of this base, not ahead of the plan and, where the plan says, the published
        one; else nothing learned."""
        generation = self.base.generation
        training = self._training.at(generation)
        try:
            state = PublishedState.read(self._state_path, self._shapes)
            if generation and state.seeds == self._training.at(generation - 1).seeds:
                # Killed between the merge and what was to come after it.
                state = state.refreshed(training, self._schema)
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
        return PublishedState.zero(training, self._schema)

    @property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        return self._training.shapes(self._schema)

    def _check_projections(self, plan: Plan) -> None:
        ours = checksums(plan.training, self._schema, self._artefact)
        for spec, own, checksum in zip(self._schema.layers, ours, plan.checksums, strict=False):
            if own != checksum:
                raise ExactnessError("this machine's projection differs from the coordinator's", place=spec.name)


def _artefact_of(plan: Plan, path: Path | None) -> Any:
    try:
        return read_artefact(path, plan.training, plan.model_schema)
    except WireError as error:
        raise ExactnessError(f"the run's artefact cannot be read: {error}", place=path.name if path else "") from None
