# SPDX-License-Identifier: Apache-2.0
"""Where memory goes in training and answering, and the choices that make it fit: values that the worker, the agent and
the wire share."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["COMPONENT_NAMES", "Allocator", "Answering", "Footprint", "MemoryComponents", "MemoryPlan", "Point"]

Allocator = Literal["default", "tuned"]

COMPONENT_NAMES = {
    "runtime_bytes": "runtime base",
    "weights_bytes": "layer weights",
    "embeddings_bytes": "embeddings and norms",
    "subspaces_bytes": "learned state and projections",
    "optimiser_bytes": "optimiser",
    "buffer_bytes": "dequantisation buffer",
    "cache_bytes": "KV cache",
    "activations_bytes": "saved activations",
    "logits_bytes": "logits",
    "working_bytes": "temporaries",
    "slack_bytes": "allocator and libraries",
}
"""What the components are called, in the order in which they are shown: always there first, then what comes and
goes."""


class MemoryComponents(msgspec.Struct, frozen=True, kw_only=True):
    """Memory by component at the moment of the peak, in bytes; the sum is the peak.

    Example:
        >>> MemoryComponents(runtime_bytes=300, weights_bytes=50).total_bytes
        350
    """

    runtime_bytes: int = 0
    """Interpreter, libraries and the node's data, before a model is there."""
    weights_bytes: int = 0
    """Target layers: int8 and row scales, or floating point. Of mapped weights, what is resident at a time; of
    dequantised ones, both kinds."""
    embeddings_bytes: int = 0
    """Every other tensor of the model: embeddings, norms, biases, heads."""
    subspaces_bytes: int = 0
    """What was learned, and what goes with it: signs of projections, the round's accumulators, integers of
    directions."""
    optimiser_bytes: int = 0
    """What trains now: factors or weights, and whole tensors, with gradients and Adam's moments."""
    buffer_bytes: int = 0
    """The block of rows that is dequantised at a time, and the signs in floating point."""
    cache_bytes: int = 0
    """Of an answer: keys and values of question and answer, when the context is full."""
    activations_bytes: int = 0
    """What the forward pass keeps for the backward pass."""
    logits_bytes: int = 0
    """What the loss needs at the peak."""
    working_bytes: int = 0
    """Temporaries at the peak: of the backward pass, recomputed activations among them; of an answer, what the last
    pass over a question needs."""
    slack_bytes: int = 0
    """What the allocator and the libraries take beyond live tensors; measured by calibration, else estimated."""

    @property
    def total_bytes(self) -> int:
        """All components together, in bytes: the process's peak."""
        return sum(getattr(self, name) for name in self.__struct_fields__)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What one forward and backward pass keeps beyond what is always there, at its peak."""

    checkpointing: bool
    recompute_gates: bool = False
    micro_batch_size: int
    length: int
    activations_bytes: int
    logits_bytes: int
    working_bytes: int


class Answering(msgspec.Struct, frozen=True, kw_only=True):
    """What answers keep beyond what is always there, while a published state is measured by them: the cache of keys and
    values, and what a pass needs.

    Example:
        >>> Answering(fixed_bytes=10, row_bytes=4).needed_bytes(3)
        22
    """

    fixed_bytes: int
    row_bytes: int
    """For each answer beside others."""

    def needed_bytes(self, answers_at_once: int) -> int:
        """Of so many side by side."""
        return self.fixed_bytes + answers_at_once * self.row_bytes


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """A model's memory as a function of the choices, before any weight is loaded.

    `points` holds the micro-batches that a plan may choose. What a pass keeps is nearly affine in the number of
    examples, but not quite: the loss takes no more than a chunk of tokens at a time, and the peak moves from one place
    of the pass to another."""

    key: str = ""
    """Stands for the model, the round's shape and the library versions; what is measured for one footprint is good for
    its key."""
    longest: int
    """Tokens of the longest example after truncation."""
    runtime_bytes: int
    """Measured in the process that made this footprint."""
    weights_bytes: int
    largest_layer_bytes: int
    """Of mapped weights one layer is resident at a time."""
    embeddings_bytes: int
    mappable_embeddings_bytes: int
    """The part of the embeddings that can stay on disk."""
    subspaces_bytes: int
    rank_bytes: int
    """Factor, gradient and two moments, for one unit of rank."""
    trained_bytes: int = 0
    """Of what trains whatever the rank: values and gradients."""
    moments_bytes: int = 0
    """Its moments."""
    tensors_bytes: int
    """Tensors trained whole: gradient, two moments, start value (the values are among the embeddings)."""
    row_bytes: int
    """One dequantised row of the widest layer, and what was learned of it."""
    signs_bytes: int
    """The signs of the widest layer in floating point."""
    dequantised_bytes: int = 0
    """The target layers whole in floating point, beside the weights as they are held; 0 where they cannot be."""
    points: tuple[Point, ...]
    answering: Answering | None = None
    """None where nothing is measured by answers."""


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A node's own choices. None of them changes what is learned, beyond float rounding; length and rank do, within the
    job's bounds."""

    micro_batch_size: int
    """Examples at a time through the model; gradients of the rest of the batch are added up."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    recompute_gates: bool = False
    """Recompute only the gates of gated MLPs: a fifth less, 5 to 7 % more time. Means nothing with checkpointing, which
    does more."""
    length: int = 0
    """Tokens that longer examples are cut to; 0 for the job's length."""
    rank: int = 0
    """Rows of each projection that train here; 0 for the plan's rank."""
    block_rows: int = 256
    """Rows of a weight that are dequantised at a time."""
    mapped: bool = False
    """Weights stay on disk and are mapped: their pages come and go."""
    dequantised: bool = False
    """Weights are kept in float32 too, what was learned merged in: 4 bytes a weight more, a tenth less time. Not with
    `mapped`."""
    allocator: Allocator = "tuned"
    """`tuned` gives freed memory back at once; `default` is faster and larger."""
    components: MemoryComponents = MemoryComponents()
    """The predicted peak of the worker."""
