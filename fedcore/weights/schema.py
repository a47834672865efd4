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

__all__ = ["AdapterTensor", "LayerSpec", "ModelSchema", "Side", "TensorName", "TensorSpec", "is_target"]

# Linear layers inside numbered blocks, and BERT's pooler; embeddings and relative position tables are not linear
# layers.
_TARGET = re.compile(r"^(?!.*(embed|relative_attention_bias)).*(\.\d+\..+|pooler\.dense)$")


TensorName = Annotated[str, Meta(min_length=1, max_length=512)]
Side = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class LayerSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """A linear layer with weight W (rows out, columns in), and how the checkpoint stores it.

    Example:
        >>> LayerSpec("h.0.attn.c_attn", 2304, 768, transposed=True).stored
        'h.0.attn.c_attn.weight'
        >>> LayerSpec("layers.0.experts.up.1", 64, 32, tensor="layers.0.experts.up", expert=1).stored
        'layers.0.experts.up'
    """

    name: TensorName
    rows: Side
    columns: Side
    tensor: Annotated[str, Meta(max_length=512)] = ""
    """The checkpoint's tensor that W lies in; empty: `name` with `.weight` after it."""
    expert: Annotated[int, Meta(ge=0)] | None = None
    """Place of W in the first of the tensor's three dimensions, where the experts of a mixture lie in one tensor."""
    transposed: bool = False
    """Whether it is stored as (columns, rows)."""

    @property
    def stored(self) -> str:
        """The checkpoint's tensor that W lies in."""
        return self.tensor or f"{self.name}.weight"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of a shape can hold W in this way."""
        matrix = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        if self.expert is None:
            return shape == matrix
        return len(shape) == 3 and shape[1:] == matrix and self.expert < shape[0]


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


class AdapterTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor that an adapter adds to the model, and what it holds before the first round: `start` everywhere; or with
    a `spread` numbers between -spread and spread, drawn from the run's seed; or the lengths of a layer's rows.

    Example:
        >>> AdapterTensor("l/ia3_l", (32, 1), start=1.0).matrix, AdapterTensor("/vera_A", (8, 32), trained=False).matrix
        ((1, 32), (8, 32))
    """

    name: TensorName
    shape: Annotated[tuple[Side, ...], Meta(max_length=8)]
    trained: bool = True
    """A tensor that does not train never travels: every node draws it."""
    start: Start = 0.0
    spread: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    lengths_of: Annotated[str, Meta(max_length=512)] = ""
    """The layer."""

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape as (rows, columns) for row scales; a vector, whichever way it stands, is one row."""
        size = math.prod(self.shape)
        return (1, size) if max(self.shape, default=1) == size else (self.shape[0], size // self.shape[0])


class ModelSchema(msgspec.Struct, frozen=True):
    """Everything both sides must agree on about a model's trained parts."""

    layers: tuple[LayerSpec, ...]
    tensors: tuple[TensorSpec, ...]
    architecture: Annotated[str, Meta(max_length=128)] = ""
    """Class that `from_pretrained` uses for the exported model."""
    export_prefix: Annotated[str, Meta(max_length=128)] = ""
    """Put before the checkpoint's names on export, where the task model wraps the checkpoint's."""
    pad_token_id: Annotated[int, Meta(ge=0)] | msgspec.UnsetType = msgspec.UNSET
    """Pads a micro-batch, where the checkpoint's configuration names no such token: one that no text has. Exported."""
    adapter: tuple[AdapterTensor, ...] = ()
    """What an adapter adds, in methods that train one."""


def is_target(tensor_name: str, shape: tuple[int, ...]) -> bool:
    """Whether a checkpoint tensor is the weight of a layer that is trained in subspaces by default.

    Example:
        >>> is_target("encoder.layer.0.output.dense.weight", (384, 1536))
        True
        >>> is_target("embeddings.word_embeddings.weight", (30522, 384))
        False
    """
    return len(shape) == 2 and tensor_name.endswith(".weight") and bool(_TARGET.match(tensor_name[: -len(".weight")]))
