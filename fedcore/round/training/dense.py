# SPDX-License-Identifier: Apache-2.0
"""Full fine-tuning: of all layers, or of one block of the model, another one each round (FedCyBGD)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from fedcore.fields.checked import RoundNumber
from fedcore.numbers.coding import Coding
from fedcore.round.training.base import Shapes, Training
from fedcore.weights.schema import ModelSchema

__all__ = ["BlockOrder", "BlockTraining", "DenseCodec", "DenseTraining", "blocks_of"]

BlockOrder = Literal["ascending", "descending", "random"]
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


def blocks_of(layers: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Names of layers by the block that they are in, blocks in the model's order.

    A layer's block is the first number in its name; layers without one (a pooler) are in the last block.

    Example:
        >>> blocks_of(["encoder.layer.1.output.dense", "encoder.layer.0.output.dense", "pooler.dense"])
        (('encoder.layer.0.output.dense',), ('encoder.layer.1.output.dense', 'pooler.dense'))
    """
    found: dict[int, list[str]] = {}
    beside: list[str] = []
    for name in layers:
        number = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        (beside if number is None else found.setdefault(number, [])).append(name)
    blocks = [found[number] for number in sorted(found)] or [[]]
    blocks[-1] += beside
    return tuple(map(tuple, blocks))


class BlockTraining(DenseTraining, frozen=True, kw_only=True, tag_field="method", tag="fedcybgd"):
    """FedCyBGD: federated averaging of one block. The state has the changes of all layers, an update those of the
    round's block."""

    turn: RoundNumber
    """How many turns there were before, of which each had a block."""
    order: BlockOrder

    def block(self, layers: Iterable[str]) -> tuple[str, ...]:
        """The layers that train.

        Args:
            layers: Names of all target layers.
        """
        blocks = blocks_of(layers)
        cycle, place = divmod(self.turn, len(blocks))
        match self.order:
            case "descending":
                return blocks[len(blocks) - 1 - place]
            case "random":
                return blocks[sorted(range(len(blocks)), key=lambda block: self._drawn(cycle, block))[place]]
        return blocks[place]

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of the round's block."""
        block = set(self.block(layer.name for layer in schema.layers))
        return {name: shape for name, shape in self.layer_shapes(schema).items() if name in block}

    def _drawn(self, cycle: int, block: int) -> bytes:
        """A block's place in a cycle: each cycle has all of them, in an order of its own."""
        return hashlib.sha256(f"fedkrso block 1/{self.run_seed}/{cycle}/{block}".encode()).digest()
