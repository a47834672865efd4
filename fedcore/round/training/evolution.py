# SPDX-License-Identifier: Apache-2.0
"""FedBPT's way of training: a prompt that moves in a few random directions, found by forward passes alone."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from fedcore.numbers.coding import Coding, packed_shape
from fedcore.round.training.base import Shapes, Training
from fedcore.weights.schema import ModelSchema, TensorSpec

__all__ = ["FITNESS", "MEAN", "ROOT", "SIGMA", "SIGMAS", "EvolutionTraining"]

MEAN: Final = "/mean"
"""The entry of z (1, d): in a state the search's mean; in an update where a node's own search ended, less that."""
SIGMA: Final = "/sigma"
"""The entry of the step size (1, 1) that nodes begin with, less the run's first one."""
ROOT: Final = "/root"
"""The entry of the covariance's symmetric root less one on the diagonal, packed (`fedcore.numbers.symmetric`)."""
FITNESS: Final = "/fitness"
"""Of an update: the loss (1, 1) where the node's search ended."""
SIGMAS: Final = "/sigmas"
"""Of an update: the step sizes (1, T) of its generations."""


class EvolutionTraining(Training, frozen=True, kw_only=True, tag_field="method", tag="fedbpt"):
    """FedBPT: each node searches by CMA-ES from the published mean, step size and covariance; a step is a generation.
    Nothing has a gradient, so tensors trained whole stay as they are."""

    learned: ClassVar[str] = "fedcore.model.learned:BesideLearned"

    intrinsic_dim: Annotated[int, Meta(ge=2, le=4096)]
    """d, numbers of z."""
    num_virtual_tokens: Annotated[int, Meta(ge=1, le=4096)]
    population: Annotated[int, Meta(ge=2, le=1024)]
    """Candidates of a node's generation."""
    sigma: Annotated[float, Meta(gt=0, le=100)]
    """The run's first step size."""

    @property
    def stands_beside(self) -> bool:
        """Before each text."""
        return True

    @property
    def virtual_tokens(self) -> int:
        """Of the prompt."""
        return self.num_virtual_tokens

    @property
    def leaves_tensors(self) -> bool:
        """A head has no gradient here: it comes from sums, or is the model's own."""
        return True

    def layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Where the search stands; of no layer."""
        return {MEAN: (1, self.intrinsic_dim), SIGMA: (1, 1), ROOT: packed_shape(self.intrinsic_dim)}

    def update_layer_shapes(self, schema: ModelSchema) -> Shapes:
        """Where the node's search ended, and how it went."""
        return {MEAN: (1, self.intrinsic_dim), FITNESS: (1, 1), SIGMAS: (1, self.steps)}

    def sent_tensors(self, schema: ModelSchema) -> tuple[TensorSpec, ...]:
        """None."""
        return ()

    def coding(self, name: str) -> Coding:
        """z in `bits`; the few others as floats."""
        return super().coding(name) if name == MEAN else Coding("floats", 32)

    def interval_numbers(self, schema: ModelSchema) -> int:
        """A search in double precision, and the step sizes."""
        d = self.intrinsic_dim
        return 2 * (d * d + 3 * d + self.steps + 4)
