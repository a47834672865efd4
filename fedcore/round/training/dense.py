# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from fedcore.numbers.coding import Coding
from fedcore.round.training.base import Shapes, Training
from fedcore.weights.schema import ModelSchema

__all__ = ["DenseCodec", "DenseTraining"]

DenseCodec = Literal["integers", "float32", "bfloat16", "top-k"]
"""How whole changes travel: `top-k` are integers too, only the largest."""


class DenseTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedavg"):
    """Federated averaging of full fine-tuning."""

    learned: ClassVar[str] = "fedcore.model.learned:DenseLearned"

    codec: DenseCodec = "integers"
    density: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of a layer's numbers that travel, for `top-k`."""

    def coding(self, name: str) -> Coding:
        """As the codec says; `bits` are of integers."""
        match self.codec:
            case "float32":
                return Coding("floats", 32)
            case "bfloat16":
                return Coding("floats", 16)
            case "top-k":
                return Coding("sparse", self.bits, self.density)
        return super().coding(name)

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Every number of a layer."""
        return {layer.name: (layer.rows, layer.columns) for layer in schema.layers}
