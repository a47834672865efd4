# SPDX-License-Identifier: Apache-2.0
"""FedTT's way of training: cores of tensor trains, which bottleneck adapters behind some layers are made of."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from fedcore.config.adapters import ends_with
from fedcore.errors import ConfigError
from fedcore.round.training.base import Rank, Shapes, Training
from fedcore.weights.schema import LayerSpec, ModelSchema
from fedcore.weights.tensortrain import CORES, core_shapes

__all__ = ["ALL_CORES", "BEHIND", "CoreName", "TensorTrainTraining"]

CoreName = Annotated[str, Meta(pattern="^(down|up)/[0-4]$")]
"""Of an adapter's two matrices, and which of its cores."""
_SIDES: Final = ("down", "up")
ALL_CORES: Final = tuple(f"{side}/{core}" for side in _SIDES for core in range(CORES))
BEHIND: Final = ("output.dense", "o_proj", "down_proj", "out_lin", "lin2", "c_proj")
"""Ends of names of the layers that write to a block's stream, behind attention and behind the MLP: BERT and its kin,
Llama and its kin, DistilBERT, GPT-2."""


class TensorTrainTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedtt"):
    """FedTT and FedTT+: which cores train. A layer's output h becomes h + U gelu(D^T h), D and U (m, bottleneck)."""

    learned: ClassVar[str] = "fedcore.model.learned:BesideLearned"

    bottleneck: Annotated[int, Meta(ge=1, le=65_536)]
    train_rank: Rank
    """r of the trains; not the plan's rank, of which a device may train less."""
    target_modules: Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)]
    """Ends of names of the layers that have an adapter."""
    trained: Annotated[tuple[CoreName, ...], Meta(min_length=1, max_length=2 * CORES)]
    """In this round, of each adapter."""

    @property
    def stands_beside(self) -> bool:
        """Behind layers, with an activation between."""
        return True

    def is_behind(self, layer: str) -> bool:
        """Whether an adapter stands behind a layer."""
        return ends_with(layer, self.target_modules)

    def layers(self, schema: ModelSchema) -> tuple[LayerSpec, ...]:
        """Those that have an adapter.

        Raises:
            ConfigError: None has.
        """
        found = tuple(layer for layer in schema.layers if self.is_behind(layer.name))
        place = "method.target_modules"
        if not found:
            ends = ", ".join(self.target_modules)
            remedy = "fedkrso model describe FOLDER names them"
            raise ConfigError(f"no layer's name ends with {ends}", place=place, remedy=remedy)
        if other := next((layer for layer in found if layer.rows != found[0].rows), None):
            words = f"{found[0].name} gives {found[0].rows} numbers, {other.name} {other.rows}"
            raise ConfigError(words, place=place, remedy="name layers that give equally many")
        return found

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """All cores, those of one place in a matrix with a row for each layer: records are few, and a core has one
        scale."""
        return self._cores(schema, ALL_CORES)

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Those that train."""
        return self._cores(schema, self.trained)

    def _cores(self, schema: ModelSchema, names: tuple[str, ...]) -> Shapes:
        layers = self.layers(schema)
        shapes = core_shapes(layers[0].rows, self.bottleneck, self.train_rank)
        return {f"/{name}": (len(layers), math.prod(shapes[int(name[-1])])) for name in names}
