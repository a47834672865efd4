# SPDX-License-Identifier: Apache-2.0
"""Small types that both light and heavy parts name (the agent imports this file; it must stay free of NumPy)."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

__all__ = ["POOLED", "BaseKind", "Bits", "HeadBegin", "Moments", "Order", "Pooled", "Pooling", "Start"]

BaseKind = Literal["int8", "float32", "bfloat16", "float16"]
"""How target layers' weights are held."""

Bits = Literal[4, 8, 16]
"""Bits of an accumulator's numbers on the wire."""

HeadBegin = Literal["random", "ridge"]
"""What a new task head holds before the method's first round: small seeded numbers, or a regression's solution."""

Pooled = Literal["first", "mean", "last", "max"]
"""What a head looks at of a text's last hidden states: one token's, their mean, or the largest of each number."""
POOLED: Final[tuple[Pooled, ...]] = ("first", "mean", "last", "max")

Pooling = Literal["auto", "model", "first", "mean", "last", "max"]
"""The same, or `model`: as transformers' own class for classification has it; `auto`: as the model was trained."""

Order = Literal["cycle", "uniform"]
"""How intervals go through the pool's subspaces."""

Moments = Literal["reset", "carried", "averaged", "rows"]
"""What Adam's moments do at the end of a FedKRSO interval: begin again, go on within the round, or go on between nodes
and rounds: of every number, or of every row of a weight."""

Start = Annotated[float, Meta(ge=-1e6, le=1e6)]
"""What a new bias holds before the first round."""
