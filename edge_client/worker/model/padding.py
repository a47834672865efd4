# SPDX-License-Identifier: Apache-2.0
"""Tokens that only fill up a micro-batch, left out of the large products.

Texts of a micro-batch are padded to the longest: of SST-2, with 16 sentences at a time, 6 tokens of 10 are padding.
Nothing that a model says of a real token depends on them, so a target layer computes the real ones alone and says zero
for the rest.

A layer then holds the real tokens' rows beside all rows for a moment. A memory plan foresees as many tokens as its
micro-batch has at full length; where rows of both kinds are no more than that, the plan's peak holds, and only there is
padding left out."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Padding"]


class Padding:
    """What a model's layers share about the micro-batch that goes through them.

    Attributes:
        room_tokens: Rows that there is memory for; 0 to compute padding like the rest.
        end_to_end: Whether examples lie end to end in one row instead (`edge_client.worker.model.varlen`).
        first_position: Of an example that does.
        most_tokens: That it may have; what is longer has padding.
        examples: Of the micro-batch that goes through.
        passes: How many micro-batches there were.
    """

    def __init__(self) -> None:
        self.room_tokens = 0
        self.end_to_end = False
        self.first_position, self.most_tokens = 0, sys.maxsize
        self.examples = self.passes = 0
        self._tokens = 0
        self._real: Tensor | None = None
        self._lengths: tuple[int, ...] = ()

    def see_rows(self, lengths: tuple[int, ...]) -> None:
        """Take note of a micro-batch whose examples have so many tokens, and lie end to end."""
        self.examples, self.passes = len(lengths), self.passes + 1
        self._tokens, self._real, self._lengths = sum(lengths), None, lengths

    def see(self, mask: Tensor) -> None:
        """Take note of a micro-batch.

        Args:
            mask: (b, t), 1 for a real token.
        """
        self._tokens, self._real, self._lengths = mask.numel(), None, ()
        self.examples, self.passes = mask.shape[0], self.passes + 1
        if self.room_tokens <= self._tokens:
            # No need to look, which would wait for an accelerator.
            return
        real = mask.reshape(-1).nonzero().squeeze(1)
        if real.numel() < self._tokens and real.numel() + self._tokens <= self.room_tokens:
            self._real = real

    def real(self, x: Tensor) -> Tensor | None:
        """Which rows of a layer's input (rows, n) are real tokens; None for all, and where rows are not the
        micro-batch's tokens."""
        return self._real if x.shape[0] == self._tokens else None

    def lengths(self, rows: int) -> list[int] | None:
        """How many of the rows that a product is of belong to each example, one after the other; None where they are
        not the micro-batch's tokens, nor one row for each example.

        Args:
            rows: As the product sees them: without padding where that is left out.
        """
        if not self.examples:
            return None
        if self._lengths:
            return list(self._lengths) if rows == self._tokens else [1] * rows if rows == self.examples else None
        if self._real is not None and rows == self._real.shape[0]:
            width = self._tokens // self.examples
            found: list[int] = torch.bincount(self._real // width, minlength=self.examples).tolist()
            return found
        return [rows // self.examples] * self.examples if rows in (self._tokens, self.examples) else None

    def left_out(self, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """A layer's output (rows, m) of its input (rows, n): the product of the real tokens' rows, zero for the
        rest."""
        real = self.real(x)
        if real is None:
            return product(x)
        y = product(x[real])
        return torch.zeros(x.shape[0], y.shape[1], dtype=y.dtype, device=y.device).index_copy_(0, real, y)
