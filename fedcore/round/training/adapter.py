# SPDX-License-Identifier: Apache-2.0
"""PEFT's adapters that train whole: which one; its tensors are in the model's schema."""

from __future__ import annotations

from typing import ClassVar

from fedcore.config.adapters import AnyAdapter
from fedcore.round.training.base import Shapes, Training
from fedcore.weights.schema import ModelSchema

__all__ = ["AdapterTraining"]


class AdapterTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedavg-peft"):
    """An adapter's named tensors, each with a mean of its own."""

    learned: ClassVar[str] = "fedcore.model.learned:BesideLearned"

    peft: AnyAdapter

    @property
    def adapter(self) -> AnyAdapter:
        """Which."""
        return self.peft

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The tensors that train."""
        return {tensor.name: tensor.matrix for tensor in schema.adapter if tensor.trained}
