# SPDX-License-Identifier: Apache-2.0
"""A replica: base plus published state as a torch model, always at a version that it can prove by its digest.

What the replica holds lies in its folder: the state file, written beside and renamed, and the base's master copy where seeds are
refreshed. A restarted worker continues from there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_client.worker.layer import SubspaceLinear
from edge_client.worker.model import build, install_weight, start_value
from fedcore.base import Base
from fedcore.checkpoint import Checkpoint
from fedcore.errors import ExactnessError, WireError
from fedcore.plan import Plan
from fedcore.projection import signs, signs_checksum
from fedcore.records import read_header
from fedcore.schedule import pool_seeds
from fedcore.state import OUTCOME_FORMAT, PublishedState, model_digest, state_shapes

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

    Raises:
        ModelError: The folder does not fit the plan.
        ExactnessError: This machine's projections or base differ from the plan's.
    """

    model: nn.Module

    def __init__(
        self, plan: Plan, model_folder: Path, folder: Path, torch_device: torch.device, compute_dtype: torch.dtype, mapped: bool = False
    ) -> None:
        self._schema = plan.model_schema
        self._run_seed = plan.training.run_seed
        self._state_path = folder / "state.bin"
        folder.mkdir(parents=True, exist_ok=True)
        self._check_projections(plan)
        self.base = Base(Checkpoint(model_folder), plan.model_schema, plan.base_kind, folder / "base")
        self.base.store()
        self._mapped = mapped
        if self.base.generation == plan.training.generation and self.base.digest() != plan.base_digest:
            raise ExactnessError(
                "this model's weights are not those of the run",
                place=str(model_folder),
                remedy="copy the coordinator's model folder to this machine",
            )
        self.state = self._stored_state(plan)
        self.model = build(self.base, plan.task, self._run_seed, torch_device, compute_dtype, mapped=mapped)
        self._start = {s.name: start_value(self.base.checkpoint, s, self._run_seed) for s in self._schema.tensors}
        self._install()

    @property
    def layers(self) -> dict[str, SubspaceLinear]:
        """Target layers by canonical name."""
        return self.model.subspace_layers  # type: ignore[return-value]

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Tensors trained whole by canonical name."""
        return self.model.trained_tensors  # type: ignore[return-value]

    def digest(self) -> str:
        """The model digest of what is held now."""
        return model_digest(self.base.digest(), self.state)

    def adopt(self, path: Path, generation: int, *, difference: bool, digest: str) -> None:
        """Take a published state from a file, after folding what the new generation says is finished.

        Raises:
            ExactnessError: The result is not the model that the coordinator published; the replica is then back at nothing learned
                and fetches whole states.
        """
        self._fold_until(generation)
        shapes = self._shapes(path)
        try:
            state = PublishedState.read(path, shapes, previous=self.state if difference else None)
        except WireError as error:
            raise ExactnessError(f"the outcome cannot be read: {error}", place=path.name) from None
        if model_digest(self.base.digest(), state) != digest:
            self._state_path.unlink(missing_ok=True)
            raise ExactnessError("the outcome leads to another model than the coordinator's", place=path.name)
        state.write(self._state_path)
        self.state = state
        self._install()

    def open(self, plan: Plan) -> None:
        """Stand where the plan's round starts: fold and take the new seeds if they changed.

        Raises:
            ExactnessError: The replica does not hold the plan's version, or its base is not the plan's.
        """
        if self.state.version != plan.version:
            raise ExactnessError(f"the round starts from version {plan.version}, this replica holds {self.state.version}")
        self._check_projections(plan)
        self._fold_until(plan.training.generation)
        if self.state.seeds != plan.training.seeds:
            self.state = self.state.refreshed(self._schema, plan.training.seeds)
        if self.base.digest() != plan.base_digest:
            raise ExactnessError("the base differs from the plan's")
        self._install()

    def restore(self) -> None:
        """Drop the round's accumulators and trained values: back to the published state."""
        self._install()

    def start_values(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        """Each whole tensor's value at the held version: initial plus published, one float32 addition."""
        out = {}
        for spec in self._schema.tensors:
            learned = self.state.entries[spec.name].values().reshape(spec.shape)
            out[spec.name] = np.add(self._start[spec.name], learned, dtype=np.float32)
        return out

    def _fold_until(self, generation: int) -> None:
        if generation == self.base.generation:
            return
        if self.base.generation + 1 == generation:
            self.base.fold(self.state, generation)
            self.base.store()
            for spec in self._schema.layers:
                install_weight(self.layers[spec.name], self.base.layer(spec, mapped=self._mapped))
            return
        raise ExactnessError(f"generation {generation} does not follow {self.base.generation}")

    def _install(self) -> None:
        for spec in self._schema.layers:
            layer, part = self.layers[spec.name], self.state.entries[spec.name]
            projection = np.concatenate([signs(s, spec.name, self.state.rank, spec.columns) for s in self.state.seeds])
            learned = bool(part.q.any())
            layer.install(
                torch.from_numpy(projection),
                self.state.rank,
                state=torch.from_numpy(np.array(part.q)) if learned else None,
                state_scale=torch.from_numpy(part.scale()) if learned else None,
            )
        with torch.no_grad():
            for name, value in self.start_values().items():
                self.tensors[name].copy_(torch.from_numpy(value))

    def _stored_state(self, plan: Plan) -> PublishedState:
        if self._state_path.exists():
            try:
                return PublishedState.read(self._state_path, self._shapes(self._state_path))
            except WireError:
                # Torn by a power cut: fetched again, like on a fresh node.
                self._state_path.unlink()
        seeds = pool_seeds(self._run_seed, self.base.generation, len(plan.training.seeds))
        return PublishedState.zero(self._schema, seeds, plan.training.rank)

    def _shapes(self, path: Path) -> dict[str, tuple[int, int]]:
        header = read_header(path, OUTCOME_FORMAT)
        seeds, rank = header.get("seeds"), header.get("rank")
        if not isinstance(seeds, list) or not isinstance(rank, int):
            raise ExactnessError("an outcome without seeds or rank", place=path.name)
        return state_shapes(self._schema, len(seeds), rank)

    def _check_projections(self, plan: Plan) -> None:
        training = plan.training
        for spec, checksum in zip(plan.model_schema.layers, plan.checksums, strict=True):
            if signs_checksum(training.seeds, spec.name, training.rank, spec.columns) != checksum:
                raise ExactnessError("this machine's projection differs from the coordinator's", place=spec.name)
