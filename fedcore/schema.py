# SPDX-License-Identifier: Apache-2.0
"""What of a model is trained: the layers that get subspaces, and the small tensors that are trained whole.

Names are those of the checkpoint's own tensors without `.weight`, so that they do not depend on how a library wraps the
model. The coordinator gets the schema once from a worker process (which knows the architecture), or from a file.
"""

from __future__ import annotations

import math
import re

import msgspec

__all__ = ["LayerSpec", "ModelSchema", "TensorSpec", "is_target"]

# Linear layers inside numbered blocks, and BERT's pooler; embeddings and relative position tables are not linear layers.
_TARGET = re.compile(r"^(?!.*(embed|relative_attention_bias)).*(\.\d+\..+|pooler\.dense)$")


class LayerSpec(msgspec.Struct, frozen=True):
    """A linear layer with weight W (rows out, columns in)."""

    name: str
    rows: int
    columns: int


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor trained whole. `in_checkpoint` is false for a new task head."""

    name: str
    shape: tuple[int, ...]
    in_checkpoint: bool

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
    architecture: str = ""
    """Class that `from_pretrained` uses for the exported model."""
    export_prefix: str = ""
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
