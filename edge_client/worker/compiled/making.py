# SPDX-License-Identifier: Apache-2.0
"""From a recipe, a base and a published state to the parts that the compiled pass takes. Weights stay in their files,
mapped; nothing of a model's size is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.compiled.native import Parts, PartsBlock, PartsLinear, PartsNorm, Rows
from edge_client.worker.compiled.recipe import BlockRecipe, LinearRecipe, NormRecipe, Recipe
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.subspaces.projection import projection_of
from fedcore.weights.checkpoint import to_float32
from fedcore.weights.schema import LayerSpec

__all__ = ["Ingredients"]

_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What a model is made of.

    Attributes:
        recipe: The model folder's.
        base: Stored (`Base.store`), so that its layers can be mapped.
        state: What was learned in subspaces, or None.
        artefact: The run's, as its method's halves take it, where it has one.
        trained: What tensors trained whole hold now, float32, by name.
    """

    recipe: Recipe
    base: Base
    state: PublishedState | None = None
    artefact: Any = None
    trained: Mapping[str, _Floats] = field(default_factory=dict)
    _mapped: dict[str, NDArray[Any]] = field(default_factory=dict, init=False)

    def parts(self) -> Parts:
        """The model's parts.

        Raises:
            ModelError: The checkpoint lacks a tensor.
        """
        recipe, layers = self.recipe, {layer.stored: layer for layer in self.base.schema.layers}
        return Parts(
            self._stored(recipe.table),
            tuple(self._block(block, layers) for block in recipe.blocks),
            self._norm(recipe.norm),
            self._linear(recipe.head, layers),
            np.array(recipe.frequencies, np.float32),
            recipe.angle_scale,
            heads=recipe.heads,
            key_heads=recipe.key_heads,
            features=recipe.features,
            scaling=recipe.scaling,
        )

    def _block(self, block: BlockRecipe, layers: Mapping[str, LayerSpec]) -> PartsBlock:
        made: dict[str, Any] = {}
        for name in block.__struct_fields__:
            part = getattr(block, name)
            if isinstance(part, LinearRecipe):
                made[name] = self._linear(part, layers)
            else:
                made[name] = None if part is None else self._norm(part)
        return PartsBlock(**made)

    def _linear(self, linear: LinearRecipe, layers: Mapping[str, LayerSpec]) -> PartsLinear:
        bias, spec = self._floats(linear.bias) if linear.bias else None, layers.get(linear.weight)
        if spec is None:
            return PartsLinear(Rows(self._stored(linear.weight)), bias)
        return PartsLinear(Rows(*self.base.layer(spec, mapped=True)), bias, self._side(spec))

    def _side(self, layer: LayerSpec) -> tuple[Rows, Rows] | None:
        """P and S of what was learned of a layer; None where that is nothing."""
        state = self.state
        if state is None or not state.entries[layer.name].q.any():
            return None
        learned = state.entries[layer.name]
        made = projection_of(state.rows_from, state.seeds, state.rank, layer.name, layer.columns, self.artefact)
        scale = np.full(len(made.rows), made.scale, np.float32)
        if made.exponent is not None:
            scale = np.ldexp(scale, made.exponent.astype(np.int32))
        return Rows(made.rows, scale), Rows(np.ascontiguousarray(learned.q), learned.scale())

    def _norm(self, norm: NormRecipe) -> PartsNorm:
        return PartsNorm(self._floats(norm.weight), norm.epsilon)

    def _stored(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored, mapped; or what it holds now, where it is trained."""
        if name in self.trained:
            return self.trained[name]
        if name not in self._mapped:
            # Once: a table that is the head too would be resident twice.
            self._mapped[name] = self.base.checkpoint.read(name, mapped=True)
        return self._mapped[name]

    def _floats(self, name: str) -> _Floats:
        """A small tensor in float32."""
        if name in self.trained:
            return self.trained[name]
        return to_float32(self.base.checkpoint.read(name), self.base.checkpoint.tensors[name].dtype)
