# SPDX-License-Identifier: Apache-2.0
"""A replica: base plus published state as a torch model, always at a version that it can prove by its digest. What of
it lies on the disk, and how far that is believed, says `edge_client.worker.train.holding`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.worker.methods import client_half
from edge_client.worker.methods.interface import trained_by
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.fused import fuse
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.loading import build, install_weight
from edge_client.worker.model.varlen import leave_padding_out
from edge_client.worker.train.holding import Holding
from edge_client.worker.train.local import LocalTensors
from fedcore.errors import BaseDamaged, ExactnessError
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.round.plan import ObjectKind, Plan
from fedcore.round.training import Training

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
        self.holding = Holding(plan, model_folder, folder, artefact)
        """What is on the disk of it."""
        self._schema, self.compute_dtype = plan.model_schema, compute_dtype
        self._mapped = mapped
        away = plan.training.untouched(plan.model_schema)
        seed = plan.training.run_seed
        self.model = build(self.base, plan.task, seed, torch_device, compute_dtype, mapped=mapped, away=away)
        self._torch_device = torch_device
        self.half = client_half(self.model, plan.training, self.holding.artefact)
        self._folder = folder
        self._local = self._local_of("", "")
        self.holding.base_changed = self._install_base
        self._install()

    @property
    def base(self) -> Base:
        """What it stands on."""
        return self.holding.base

    @property
    def state(self) -> PublishedState:
        """What was learned on it."""
        return self.holding.state

    @state.setter
    def state(self, state: PublishedState) -> None:
        self.holding.state = state

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
        return self.holding.digest()

    def lighten(self) -> None:
        """Have the model keep less for the backward pass, and leave padding out, where that gives the same numbers:
        before it trains or is measured."""
        fuse(self.model.module)
        leave_padding_out(self.model, self._torch_device)

    def adopt(self, path: Path, generation: int, kind: ObjectKind, digest: str) -> None:
        """Take a published object from a file (`Holding.adopt`), and compute with it.

        Raises:
            ExactnessError: The result is not the model that the coordinator published, or what it had to be put on is
                damaged. What is wrong is dropped from the disk, and this replica has to be loaded again. A file that
                cannot be read changes nothing.
        """
        self.holding.adopt(path, generation, kind, digest)
        self._install()

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
        holding = self.holding
        holding.require_held()
        if self.state.version != plan.version:
            raise ExactnessError(
                f"the round starts from version {plan.version}, this replica holds {self.state.version}"
            )
        self._take_half(plan.training)
        holding.check_projections(plan)
        try:
            holding.merge_until(plan.training.generation)
        except BaseDamaged:
            holding.drop(base=True)
            raise
        if self.base.digest() != plan.base_digest:
            holding.drop(base=True)
            raise ExactnessError("the base differs from the plan's")
        if plan.start_digest not in ("", self.digest()):
            holding.drop(base=False)
            raise ExactnessError(f"this replica's version {plan.version} is not the published one")
        # Whoever measures a run's last state has trained its last round, and the plan still names that one.
        self._install(before=plan.version + 1)

    def _take_half(self, training: Training) -> None:
        """Have the half of the plan's rounds, where a round of another kind came before: the one inside, or around it
        the one that gathers."""
        holding = self.holding
        if type(training) is type(holding.training):
            return
        half = trained_by(self.half)
        if type(training) is not type(training.learns) is type(holding.training):
            half = client_half(self.model, training, self.holding.artefact, inside=self.half)
        elif type(training) is not type(holding.training.learns) or half is self.half:
            raise ExactnessError(
                f"this replica was loaded for rounds of {holding.training.method}, the plan is of {training.method}"
            )
        holding.training, self.half = training, half

    def restore(self) -> None:
        """Drop the round's accumulators and trained values: back to the published state, and to what this node kept for
        itself."""
        self._install()

    def start_values(self) -> dict[str, NDArray[np.float32]]:
        """Each whole tensor's value at the held version (`Holding.start_values`)."""
        return self.holding.start_values()

    def _install_base(self) -> None:
        self.base.store()
        for spec in self._schema.layers:
            install_weight(self.layers[spec.name], self.base.layer(spec, mapped=self._mapped))

    def _install(self, before: int | None = None) -> None:
        """Compute with the held state, and with what this node kept of rounds before a given one."""
        self.half.install(self.state)
        parameters, local = self._local_parameters(), self._local.load(before)
        with torch.no_grad():
            for name, value in {**self.holding.start, **self.start_values()}.items():
                self.tensors[name].copy_(torch.from_numpy(value))
            for name in parameters.keys() & local.keys():
                parameters[name].copy_(torch.from_numpy(local[name]))

    def _local_parameters(self) -> dict[str, nn.Parameter]:
        """What stays on this node: of the method, and the tensors trained whole that are not shared."""
        shared = {spec.name for spec in self.holding.training.shared_tensors(self._schema)}
        return {**self.half.local, **{name: tensor for name, tensor in self.tensors.items() if name not in shared}}

    def _local_of(self, run: str, node: str) -> LocalTensors:
        training = self.holding.training
        key = msgspec.msgpack.encode((run, node, training.method, training.rank, training.run_seed, self._schema))
        return LocalTensors(self._folder / "local", key)
