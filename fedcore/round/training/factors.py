# SPDX-License-Identifier: Apache-2.0
"""The LoRA family, and those of it that stack factors for a merge."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from fedcore.round.training.base import DOWN, UP, Rank, Shapes, Training, numbers
from fedcore.subspaces.schedule import pool_seeds
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Factor", "FactorTraining", "ResidualTraining", "StackedTraining"]

Factor = Literal["A", "B"]
"""LoRA's down-projection A (r, n) and up-projection B (m, r): W + alpha / r B A."""


class FactorTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="lora"):
    """The LoRA family: which of the two factors train, and which are shared."""

    learned: ClassVar[str] = "fedcore.model.learned:FactorLearned"

    rank: Rank
    alpha: Annotated[float, Meta(gt=0, le=1e6)]
    trained: Annotated[tuple[Factor, ...], Meta(min_length=1, max_length=2)]
    """In this round."""
    shared: Annotated[tuple[Factor, ...], Meta(min_length=1, max_length=2)]
    """In the state. A factor that trains and is not shared stays on its node, with its task head."""
    coordinates: bool = False
    """Whether A begins with signed rows of the identity."""

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Shapes of the factors that all participants share, by entry."""
        return self._factors(schema, self.shared)

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The shared factors that train."""
        return self._factors(schema, tuple(factor for factor in self.shared if factor in self.trained))

    @property
    def local(self) -> tuple[Factor, ...]:
        """The factors that stay on their node."""
        return tuple(factor for factor in self.trained if factor not in self.shared)

    @property
    def shares_model(self) -> bool:
        """Not where a factor stays on its node."""
        return not self.local

    def first_seed(self, seeds: tuple[int, ...]) -> int:
        """What the first values of A are drawn from, in a state of these seeds."""
        return self.run_seed

    def node_seed(self, seeds: tuple[int, ...], node: str) -> int:
        """What the first values of this node's A are drawn from: the same for all, where nothing else is said."""
        return self.first_seed(seeds)

    def first_factor(self, name: str, columns: int, seed: int) -> NDArray[np.float32]:
        """A (r, n) before anything is learned. Rows of the identity are as long as uniform ones, 1 / sqrt(3), so that
        rates and alpha mean the same.

        Args:
            name: Of the entry.
            columns: Of the layer, n.
            seed: `first_seed`, or `node_seed`.

        Raises:
            ConfigError: More rows of the identity than it has.
        """
        import numpy as np

        from fedcore.subspaces.rows.coordinate import coordinate
        from fedcore.weights.initial import initial_factor

        if self.coordinates:
            return np.asarray(coordinate(seed, name, self.rank, columns) * np.float32(1 / math.sqrt(3)))
        return initial_factor(name, self.rank, columns, seed)

    def shared_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """None where a factor stays on its node: its head goes with it."""
        return schema.tensors if self.shares_model else ()

    def interval_numbers(self, schema: ModelSchema) -> int:
        """The factors that train and the whole tensors, with two moments of each."""
        return 3 * (
            numbers(self._factors(schema, self.trained))
            + numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        )

    def local_numbers(self, schema: ModelSchema) -> int:
        """The factors that stay, and the head with them."""
        tensors = {} if self.shares_model else {tensor.name: tensor.matrix for tensor in schema.tensors}
        return numbers(self._factors(schema, self.local) | tensors)

    def _factors(self, schema: ModelSchema, factors: tuple[Factor, ...]) -> Shapes:
        return {f"{layer.name}/{factor}": self._shape(factor, layer) for layer in schema.layers for factor in factors}

    def _shape(self, factor: Factor, layer: LayerSpec) -> tuple[int, int]:
        return (self.rank, layer.columns) if factor == "A" else (layer.rows, self.rank)


class StackedTraining(FactorTraining, frozen=True, kw_only=True, tag_field="method", tag="flora"):
    """FLoRA: what all participants learned is merged after each round, and factors begin again."""

    learned: ClassVar[str] = "fedcore.model.learned:StackedLearned"

    own: bool = False
    """Whether each node draws an A of its own."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each generation: A is drawn from it."""
        return pool_seeds(self.run_seed, self.generation, 1)

    def first_seed(self, seeds: tuple[int, ...]) -> int:
        """New in each generation, so that the sum of all generations' products is not of rank r."""
        return seeds[0]

    def node_seed(self, seeds: tuple[int, ...], node: str) -> int:
        """Of the generation, and of the node where each has its own: whoever knows both can draw it."""
        if not self.own:
            return self.first_seed(seeds)
        digest = hashlib.sha256(b"fedkrso own factor 1" + seeds[0].to_bytes(8, "little") + node.encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The participants' factors, side by side."""
        return _stacked(schema)

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Shapes of the factors that one participant's update has, by entry."""
        return self._factors(schema, self.trained)


class ResidualTraining(FactorTraining, frozen=True, kw_only=True, tag_field="method", tag="fedex-lora"):
    """FedEx-LoRA: factors are averaged, and what the product of the means lacks to the mean of the products is merged
    after each round."""

    learned: ClassVar[str] = "fedcore.model.learned:ResidualLearned"

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each generation: the residual belongs to it."""
        return pool_seeds(self.run_seed, self.generation, 1)

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The shared factors, and the residual's."""
        return self._factors(schema, self.shared) | _stacked(schema)


def _stacked(schema: ModelSchema) -> Shapes:
    return {f"{layer.name}{UP}": (layer.rows, 0) for layer in schema.layers} | {
        f"{layer.name}{DOWN}": (0, layer.columns) for layer in schema.layers
    }
