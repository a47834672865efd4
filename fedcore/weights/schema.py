# SPDX-License-Identifier: Apache-2.0
"""What of a model is trained: the layers that get subspaces, and the small tensors that are trained whole.

Names are those of the checkpoint's own tensors without `.weight`, so that they do not depend on how a library wraps the
model. The coordinator gets the schema once from a worker process (which knows the architecture), or from a file.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from fedcore.fields.types import Start

__all__ = ["LayerSpec", "ModelSchema", "Side", "TensorName", "TensorSpec", "is_target"]

# Linear layers inside numbered blocks, and BERT's pooler; embeddings and relative position tables are not linear
# layers.
_TARGET = re.compile(r"^(?!.*(embed|relative_attention_bias)).*(\.\d+\..+|pooler\.dense)$")


TensorName = Annotated[str, Meta(min_length=1, max_length=512)]
Side = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class LayerSpec(msgspec.Struct, frozen=True):
    """A linear layer with weight W (rows out, columns in)."""

    name: TensorName
    rows: Side
    columns: Side


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor trained whole. `in_checkpoint` is false for a new task head."""

    name: TensorName
    shape: Annotated[tuple[Side, ...], Meta(max_length=8)]
    in_checkpoint: bool
    start: Start = 0.0
    """What a new bias holds before the first round."""

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape as (rows, columns) for row scales; a vector is one row."""
        if len(self.shape) < 2:
            return 1, math.prod(self.shape)
        return self.shape[0], math.prod(self.shape[1:])


class ModelSchema(msgspec.Struct, frozen=True):
    """Everything both sides must agree on about a model's trained parts."""

    layers: tuple[LayerSpec, ...]
    tensors: tuple[TensorSpec, ...]
    architecture: Annotated[str, Meta(max_length=128)] = ""
    """Class that `from_pretrained` uses for the exported model."""
    export_prefix: Annotated[str, Meta(max_length=128)] = ""
    """Put before the checkpoint's names on export, where the task model wraps the checkpoint's."""


def is_target(tensor_name: str, shape: tuple[int, ...]) -> bool:
    """Whether a checkpoint tensor is the weight of a layer that is trained in subspaces by default.

    Example:
        >>> is_target("encoder.layer.0.output.dense.weight", (384, 1536))
        True
        >>> is_target("embeddings.word_embeddings.weight", (30522, 384))
        False
    """
    return len(shape) == 2 and tensor_name.endswith(".weight") and bool(_TARGET.match(tensor_name[: -len(".weight")]))
