# SPDX-License-Identifier: Apache-2.0
"""A frozen embedding in the dtype that it is stored in, in memory or on disk.

A float32 copy of a bfloat16 embedding takes twice its bytes and gives the same numbers: rows are widened exactly when
they are looked up."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_client.worker.model.weights import release

__all__ = ["FrozenEmbedding"]


class FrozenEmbedding(nn.Module):
    """Rows of a weight (v, n), as float32.

    Args:
        weight: Any floating dtype; frozen. The output embedding may share it.
        mapping: Where the weight is mapped from disk; pages are given back after each use.
    """

    def __init__(self, weight: nn.Parameter, mapping: mmap.mmap | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.mapping = mapping
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 to (..., n) float32."""
        rows = F.embedding(ids, self.weight).to(torch.float32)
        release(self.mapping)
        return rows
