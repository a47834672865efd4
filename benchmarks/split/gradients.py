# SPDX-License-Identifier: Apache-2.0
"""What a channel would do to split learning whose front trains too, so that gradients come down over it. `split` does
not send them: this is plain training of the whole model at one place, disturbed at the cut in both directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from edge_client.worker.architecture.cut import blocks_in, put_out
from edge_client.worker.model.built import BuiltModel

__all__ = ["both_ways", "disturbed"]


def disturbed(numbers: Tensor, error: float, draws: torch.Generator) -> Tensor:
    """Numbers (..., n) as they arrive: with normal noise whose mean square is `error` times that of their token's.

    Example:
        >>> sent = torch.ones(2000, 50)
        >>> arrived = disturbed(sent, 0.25, torch.Generator().manual_seed(0))
        >>> round(float((arrived - sent).square().mean()), 2)
        0.25
    """
    if not error:
        return numbers
    size = numbers.detach().float().square().mean(-1, keepdim=True).sqrt() * math.sqrt(error)
    drawn = torch.randn(numbers.shape, generator=draws) * size
    return numbers + drawn.to(numbers.dtype)


@contextmanager
def both_ways(model: BuiltModel, blocks: int, up: float, down: float, seed: int) -> Iterator[None]:
    """Inside, activations come out of a model's first blocks with one error, and gradients come back with another.

    Args:
        model: Built.
        blocks: Before the cut.
        up: Error of activations, in units of the mean square of a token's.
        down: The same of gradients.
        seed: Of the noise.
    """
    draws = torch.Generator().manual_seed(seed)

    def cut(said: Tensor) -> Tensor:
        sent: Any = said
        if said.requires_grad and down:
            sent.register_hook(lambda gradient: disturbed(gradient, down, draws))
        return disturbed(said, up, draws)

    handle = put_out(blocks_in(model.module, "channel")[blocks - 1], cut)
    try:
        yield
    finally:
        handle.remove()
