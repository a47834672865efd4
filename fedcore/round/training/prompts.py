# SPDX-License-Identifier: Apache-2.0
"""FedPepTAO's way of training: prompts before the keys and values of every layer, of which some are shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from fedcore.config.adapters import ends_with
from fedcore.errors import ConfigError
from fedcore.numbers.coding import Coding
from fedcore.round.training.base import Shapes, Training, numbers
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

__all__ = ["PROMPTS", "SCORES", "SCORE_UNIT", "PromptTraining", "chosen_layers"]

PROMPTS: Final = "/prompts"
"""The entry of the shared layers' prompts: a row for each layer that was chosen, in the model's order."""
SCORES: Final = "/scores"
"""The entry of the layers' scores, which say which are chosen."""
SCORE_UNIT: Final = 2.0**20
"""Scores travel in units of this: one of n texts is at most 1e5 n, and exact sums end at 2**7."""
_KEYS: Final = ("key", "k_proj", "k_lin")


def chosen_layers(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The layers with the highest scores, in the model's order; of equals the first. None where nothing is known yet.

    Example:
        >>> chosen_layers([1.0, 3.0, 2.0], 2), chosen_layers([0.0, 0.0], 1)
        ((1, 2), ())
    """
    if not any(scores):
        return ()
    return tuple(sorted(sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))[:count]))


class PromptTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedpeptao"):
    """FedPepTAO: all prompts train on a node; those of chosen layers are shared, the others stay there. Which layers
    are chosen follows from the scores in the published state, so no plan has to name them."""

    learned: ClassVar[str] = "fedcore.model.learned:BesideLearned"

    num_virtual_tokens: Annotated[int, Meta(ge=1, le=4096)]
    shared_part: Annotated[float, Meta(gt=0, le=1)]
    """Of the layers; 1 for all, which nobody has to score."""
    stage: Literal["scores", "prompts"]
    server_rate: Annotated[float, Meta(ge=0, le=1)]
    """Of the coordinator's step beyond the mean, in this round; 0 for none."""

    @property
    def phase(self) -> str:
        """What tables call the round in which layers are scored."""
        return "scores" if self.stage == "scores" else ""

    @property
    def stands_beside(self) -> bool:
        """Before keys and values."""
        return True

    @property
    def virtual_tokens(self) -> int:
        """As many as each layer has."""
        return self.num_virtual_tokens

    @property
    def shares_model(self) -> bool:
        """Where all layers' prompts are shared."""
        return self.shared_part == 1

    def keys(self, schema: ModelSchema) -> tuple[LayerSpec, ...]:
        """The layers that make keys, one for each layer of the model.

        Raises:
            ConfigError: There is none, or they are not alike.
        """
        found = tuple(layer for layer in schema.layers if ends_with(layer.name, _KEYS))
        if not found or len({layer.rows for layer in found}) > 1:
            words = "no layer makes keys alone" if not found else "layers make keys of different width"
            raise ConfigError(
                f"prompts have no place in this model: {words}", place="method.name", remedy="use fedkrso"
            )
        return found

    def shared(self, schema: ModelSchema) -> int:
        """How many layers' prompts are."""
        return max(1, round(self.shared_part * len(self.keys(schema))))

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """The shared prompts, and scores where they decide which."""
        keys = self.keys(schema)
        prompts = {PROMPTS: (self.shared(schema), self._width(keys))}
        return prompts if self.shares_model else prompts | {SCORES: (1, len(keys))}

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Of the round's stage."""
        name = SCORES if self.stage == "scores" else PROMPTS
        return {name: self.layer_shapes(schema)[name]}

    def sent_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """None with scores: nothing is trained."""
        return () if self.stage == "scores" else self.shared_tensors(schema)

    @property
    def trains_tensors(self) -> bool:
        """Not with scores."""
        return self.stage != "scores"

    def coding(self, name: str) -> Coding:
        """Scores as floats, of which the largest is far above the others."""
        return Coding("floats", 32) if name == SCORES else super().coding(name)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """All prompts and the whole tensors, with two moments of each."""
        keys = self.keys(schema)
        whole = numbers({tensor.name: tensor.matrix for tensor in schema.tensors})
        return 3 * (len(keys) * self._width(keys) + whole)

    def local_numbers(self, schema: ModelSchema) -> int:
        """The prompts that stay."""
        keys = self.keys(schema)
        return (len(keys) - self.shared(schema)) * self._width(keys)

    def _width(self, keys: Sequence[LayerSpec]) -> int:
        """Numbers of a layer's prompts: keys and values."""
        return self.num_virtual_tokens * 2 * keys[0].rows
