# SPDX-License-Identifier: Apache-2.0
"""FedKRSO's way of training."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from fedcore.errors import UpdateRefused
from fedcore.fields.checked import OptionalSha256
from fedcore.fields.types import Moments, Order
from fedcore.numbers.coding import Coding
from fedcore.round.header import Expected, UpdateHeader
from fedcore.round.training.artefact import ArtefactKind
from fedcore.round.training.base import SECOND, SECOND_BITS, Rank, Seed, Shapes, Training, numbers
from fedcore.subspaces.schedule import pool_seeds
from fedcore.weights.schema import ModelSchema

if TYPE_CHECKING:
    from fedcore.subspaces.informed import InformedRows

__all__ = ["ProjectionName", "SubspaceTraining"]

ProjectionName = Literal["signs", "gaussian", "coordinate", "orthonormal", "informed"]
"""What rows of subspaces are made of (`fedcore.subspaces.rows`); or where they come from
(`fedcore.subspaces.informed`)."""

_INFORMED_ROWS = ArtefactKind("informed rows", "edge_client.worker.methods.fedkrso.principal:make_informed")


class SubspaceTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedkrso"):
    """FedKRSO (design 2): factors in random subspaces, one an interval."""

    learned: ClassVar[str] = "fedcore.model.learned:SubspaceLearned"

    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=1024)]
    """The pool's K seeds."""
    rank: Rank
    min_rank: Rank
    order: Order
    moments: Moments = "reset"
    projection: ProjectionName = "signs"
    artefact: OptionalSha256 = ""
    """SHA-256 of the informed rows."""
    informed_subspaces: Annotated[int, Meta(ge=0, le=1024)] = 0
    """How many of the pool's subspaces have informed rows: the first ones."""

    @property
    def rows_from(self) -> str:
        """A kind of `fedcore.subspaces.rows`, or `informed/SUBSPACES/SHA256`."""
        return (
            f"{self.projection}/{self.informed_subspaces}/{self.artefact}"
            if self.projection == "informed"
            else self.projection
        )

    @property
    def artefact_kind(self) -> ArtefactKind | None:
        """Informed rows, where some subspaces have them."""
        return _INFORMED_ROWS if self.informed_subspaces else None

    def read_artefact(self, path: Path, schema: ModelSchema) -> InformedRows:
        """By layer."""
        # Who only plans needs no NumPy.
        from fedcore.subspaces.informed import read_informed

        return read_informed(path, schema, self.informed_subspaces, self.rank)

    def at(self, generation: int) -> Training:
        """In another generation, with its seeds."""
        return msgspec.structs.replace(
            self, generation=generation, seeds=pool_seeds(self.run_seed, generation, len(self.seeds))
        )

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """K r columns for a layer; of `rows` beside it one number for each of its rows, side by side."""
        columns, shapes = len(self.seeds) * self.rank, dict[str, tuple[int, int]]()
        for layer in schema.layers:
            shapes[layer.name] = (layer.rows, columns)
            if self.shares_moments:
                shapes[layer.name + SECOND] = (1, layer.rows) if self.moments == "rows" else (layer.rows, columns)
        return shapes

    def expected_layers(self, schema: ModelSchema, header: UpdateHeader) -> dict[str, Expected]:
        """The columns of the seeds used, and of the rank trained; of `rows` all."""
        columns = tuple(k * self.rank + row for k in header.subspaces for row in range(header.rank))
        expected = {}
        for layer in schema.layers:
            expected[layer.name] = Expected((layer.rows, len(columns)), self.coding(layer.name), columns)
            if self.shares_moments:
                coding = self.coding(layer.name + SECOND)
                expected[layer.name + SECOND] = (
                    Expected((1, layer.rows), coding)
                    if self.moments == "rows"
                    else Expected((layer.rows, len(columns)), coding, columns)
                )
        return expected

    def coding(self, name: str) -> Coding:
        """Second moments have bits of their own."""
        return Coding("integers", SECOND_BITS if name.endswith(SECOND) else self.bits)

    def averaged_by_column(self, schema: ModelSchema) -> frozenset[str]:
        """Second moments: who did not use a subspace knows nothing of it, where an unused accumulator is known to be
        zero."""
        return frozenset(layer.name + SECOND for layer in schema.layers) if self.shares_moments else frozenset()

    @property
    def shares_moments(self) -> bool:
        """Whether roots of second moments are entries of the state."""
        return self.moments in ("averaged", "rows")

    def check_header(self, header: UpdateHeader) -> None:
        """Rank and subspaces within the plan's."""
        if not self.min_rank <= header.rank <= self.rank:
            raise UpdateRefused(f"rank {header.rank} is outside {self.min_rank} to {self.rank}", place=header.node)
        used = header.subspaces
        if len(set(used)) != len(used) or not used or not all(0 <= k < len(self.seeds) for k in used):
            raise UpdateRefused(
                f"subspaces {reprlib.repr(used)} are not distinct indices of {len(self.seeds)} seeds", place=header.node
            )

    def interval_numbers(self, schema: ModelSchema) -> int:
        """One accumulator of every layer with the moments that go on, and the whole tensors with theirs."""
        whole = numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        kept = self.rank * (1 + {"reset": 0, "carried": 2, "averaged": 1, "rows": 0}[self.moments])
        return (kept + (self.moments == "rows")) * sum(layer.rows for layer in schema.layers) + 3 * whole
