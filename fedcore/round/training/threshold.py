# SPDX-License-Identifier: Apache-2.0
"""SpaFL's way of training: each node keeps weights of its own, of which thresholds that all share switch rows off."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from fedcore.round.training.base import Shapes, Training, numbers
from fedcore.weights.schema import ModelSchema, TensorSpec

__all__ = ["THRESHOLD", "ThresholdTraining"]

THRESHOLD: Final = "/threshold"
"""Ends the name of the entry of a layer's thresholds (1, m)."""


class ThresholdTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="spafl"):
    """SpaFL: thresholds are shared, weights and the task head stay on their node."""

    learned: ClassVar[str] = "fedcore.model.learned:BesideLearned"

    coefficient: Annotated[float, Meta(ge=0, le=1)]
    """Of the sum of exp(-threshold) beside the loss, which moves thresholds up."""
    gradient_clip: Annotated[float, Meta(gt=0, le=1e6)]
    """Largest norm of a step's gradient, of weights and thresholds together."""

    @property
    def shares_model(self) -> bool:
        """Every node has its own."""
        return False

    def shared_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """None: the head goes with the weights."""
        return ()

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """A row for each layer."""
        return {layer.name + THRESHOLD: (1, layer.rows) for layer in schema.layers}

    def interval_numbers(self, schema: ModelSchema) -> int:
        """Weights and thresholds with a momentum each, and whole tensors with two moments."""
        whole = numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        return 2 * (self._weights(schema) + numbers(self.layer_shapes(schema))) + 3 * whole

    def local_numbers(self, schema: ModelSchema) -> int:
        """Weights, the thresholds that they were trained with, and the head."""
        whole = numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        return self._weights(schema) + numbers(self.layer_shapes(schema)) + whole

    def _weights(self, schema: ModelSchema) -> int:
        return sum(layer.rows * layer.columns for layer in schema.layers)
