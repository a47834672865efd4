# SPDX-License-Identifier: Apache-2.0
"""A model of transformers cut between two of its blocks: what comes out of the first ones is taken or put there, and
blocks that compute nothing pass on what they get.

The model runs as transformers has it, so positions, masks and norms are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcore.errors import ModelError

__all__ = ["blocks_in", "each_text", "pass_on", "passing_on", "put_out", "taken_in", "without_weights"]


def blocks_in(module: nn.Module, place: str) -> nn.ModuleList:
    """A model's blocks, in order.

    Args:
        module: As transformers has it.
        place: Named in the error.

    Raises:
        ModelError: They are in no list.
    """
    config: Any = module.config
    count = config.get_text_config().num_hidden_layers
    for found in module.modules():
        if isinstance(found, nn.ModuleList) and len(found) == count:
            return found
    raise ModelError(f"its {count} blocks are in no list", place=place)


def each_text(hidden: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The hidden states (t, n) of each text of a micro-batch, as views.

    Args:
        hidden: Of texts side by side (b, t, n), with padding behind them, or end to end in one row (1, t, n).
        lengths: Tokens of each.
    """
    if tuple(hidden.shape[:2]) == (1, sum(lengths)):
        return list(torch.split(hidden[0], list(lengths)))
    return [row[:length] for row, length in zip(hidden, lengths, strict=True)]


def pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """What a block does that computes nothing."""
    return hidden_states


def without_weights(block: nn.Module) -> None:
    """Have a block give out what it gets, for good, and let go of its weights."""
    block.forward = pass_on
    for parameter in block.parameters():
        parameter.data = parameter.data.new_empty(0)


@contextmanager
def passing_on(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, blocks give out what they get."""
    for block in blocks:
        block.forward = pass_on
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def taken_in(block: nn.Module, take: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Have a function see what a block gets, and give what it gets instead, until the handle is removed.

    Args:
        block: Of a model.
        take: From hidden states (b, t, n) to such.
    """

    def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (take(arguments[0]), *arguments[1:]), named
        return arguments, named | {"hidden_states": take(named["hidden_states"])}

    return block.register_forward_pre_hook(before, with_kwargs=True)


def put_out(block: nn.Module, put: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Have a function see what a block gives out, and say what it gives out instead, until the handle is removed.

    Args:
        block: Of a model.
        put: From hidden states (b, t, n) to such.
    """

    def after(_: nn.Module, __: Any, said: Any) -> Any:
        return (put(said[0]), *said[1:]) if isinstance(said, tuple) else put(said)

    return block.register_forward_hook(after)
