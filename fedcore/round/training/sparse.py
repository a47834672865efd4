# SPDX-License-Identifier: Apache-2.0
"""SLoRA's way of training, in two stages of one run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from fedcore.round.training.base import Rank, Shapes, Training, numbers
from fedcore.weights.schema import ModelSchema

__all__ = ["SPARSE", "SparseTraining", "per_row"]

SPARSE: Final = "/sparse"
"""Ends the name of the entry of a layer's numbers that train in the first stage."""


def per_row(columns: int, density: float) -> int:
    """k: how many numbers of a row train.

    Example:
        >>> per_row(384, 0.01), per_row(32, 0.01)
        (4, 1)
    """
    return min(columns, max(1, round(density * columns)))


class SparseTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="slora"):
    """SLoRA: some numbers of each row of W in the first rounds, LoRA's factors in the others. The state has the entries
    of both from the beginning; those of the other stage are zero."""

    learned: ClassVar[str] = "fedcore.model.learned:SparseLearned"

    rank: Rank
    alpha: Annotated[float, Meta(gt=0, le=1e6)]
    density: Annotated[float, Meta(gt=0, le=1)]
    """Part of each row that trains in the first stage."""
    stage: Literal["sparse", "factors"]
    last: bool = False
    """Whether the first stage ends with this round: then its mean becomes factors."""

    @property
    def phase(self) -> str:
        """What tables call rounds of the first stage."""
        return "sparse" if self.stage == "sparse" else ""

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of both stages."""
        return self._sparse(schema) | self._factors(schema)

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of the round's stage."""
        return self._sparse(schema) if self.stage == "sparse" else self._factors(schema)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """Of the larger stage, and the whole tensors, with two moments of each."""
        whole = numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        return 3 * (max(numbers(self._sparse(schema)), numbers(self._factors(schema))) + whole)

    def _sparse(self, schema: ModelSchema) -> Shapes:
        return {layer.name + SPARSE: (layer.rows, per_row(layer.columns, self.density)) for layer in schema.layers}

    def _factors(self, schema: ModelSchema) -> Shapes:
        down = {f"{layer.name}/A": (self.rank, layer.columns) for layer in schema.layers}
        return down | {f"{layer.name}/B": (layer.rows, self.rank) for layer in schema.layers}
