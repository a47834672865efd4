# SPDX-License-Identifier: Apache-2.0
"""Embeddings as they arrive over a channel: noise on what a model's embeddings say, while a round is trained.

Every number gets normal noise of standard deviation sqrt(error) times the root mean square of its token's embedding:
what a sender does who sends each token with the same power. The noise follows from the run's seed, round, node, step
and place in the batch, so that it is the same after a kill, in a step that is repeated, in both passes of a method
without gradients, and whatever the micro-batch. It is not in the way once the round is trained: whatever is measured or
answered goes through a model without it.

Source: noise on the embeddings' output is what R-SFLLM (arXiv 2407.11654) trains with. Legend: b examples of a
micro-batch, t tokens of the longest, n features."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edge_client.worker.architecture.cut import blocks_in, put_out
from edge_client.worker.data.batches import Encoded
from edge_client.worker.model.built import CANNOT_RUN, BuiltModel
from fedcore.errors import ModelError
from fedcore.round.plan import Plan
from fedcore.subspaces.rows.gaussian import GAUSSIAN_SQUARES, QUANTILES

__all__ = ["Drawing", "StepNoise", "embeddings_of", "noise", "over_channel", "receive", "unfilled"]

_DOMAIN: Final = b"fedkrso channel noise 1"
_STEPS: Final = np.array(QUANTILES, np.int8).tobytes()
"""What each byte of the stream stands for: normal numbers in 256 steps."""
_UNIT: Final = np.float32(math.sqrt(len(QUANTILES) / GAUSSIAN_SQUARES))
"""Brings their mean square to one."""

Drawing = Callable[[Tensor], Tensor]
"""Noise with a mean square of one for what embeddings say (b, t, n), float32 in main memory."""


def noise(run_seed: int, server_round: int, node: str, step: int, place: int, out: NDArray[np.float32]) -> None:
    """Fill an array with an example's noise, float32 of mean square one: one byte of SHAKE-128 a number. Of a longer
    example it begins with the same.

    Args:
        run_seed: Of the run.
        server_round: The round.
        node: Its name.
        step: Of the round, from 0.
        place: Of the example in its batch, from 0.
        out: (tokens, n), float32; its rows lie one after the other.

    Example:
        >>> out = np.empty((1, 4), np.float32)
        >>> noise(0, 1, "kitchen", 0, 0, out)
        >>> (1000 * out).round().astype(int).tolist()
        [[364, 546, -1115, -91]]
    """
    words = f"{run_seed}/{server_round}/{node}/{step}/{place}".encode()
    drawn = hashlib.shake_128(_DOMAIN + words).digest(out.size).translate(_STEPS)
    np.multiply(np.frombuffer(drawn, np.int8).reshape(out.shape), _UNIT, out=out)


class StepNoise:
    """What embeddings get in a round, micro-batch by micro-batch.

    Args:
        plan: The round.
        node: This participant.
    """

    def __init__(self, plan: Plan, node: str) -> None:
        self._words = plan.training.run_seed, plan.round, node
        self._step = self._first = 0
        self._lengths: tuple[int, ...] = ()

    def see(self, step: int, first: int, part: Sequence[Encoded]) -> None:
        """Say what goes through the model next.

        Args:
            step: Of the round, from 0.
            first: Place of the micro-batch's first example in its batch.
            part: The micro-batch.
        """
        self._step, self._first, self._lengths = step, first, tuple(len(encoded.ids) for encoded in part)

    def __call__(self, said: Tensor) -> Tensor:
        """For texts side by side, with padding behind them and virtual tokens before them, or end to end in one row;
        padding gets none.

        Raises:
            ModelError: They lie in another way.
        """
        end_to_end = tuple(said.shape[:2]) == (1, sum(self._lengths))
        before, start = (0 if end_to_end else said.shape[1] - max(self._lengths)), 0
        if not end_to_end and (said.shape[0] != len(self._lengths) or before < 0):
            raise ModelError(f"its embeddings are of {tuple(said.shape[:2])} texts and tokens", place="channel")
        drawn = torch.zeros(said.shape)
        numbers = drawn.numpy()
        for place, length in enumerate(self._lengths):
            rows = numbers[0, start : start + length] if end_to_end else numbers[place, : before + length]
            noise(*self._words, self._step, self._first + place, rows)
            start += length
        return drawn


def unfilled(said: Tensor) -> Tensor:
    """As much memory as `StepNoise` takes, where numbers do not matter: what is planned with."""
    drawn = torch.zeros(said.shape)
    # One example's bytes, as they are drawn and as steps.
    streams = [torch.empty(said[0].numel(), dtype=torch.uint8) for _ in range(2)]
    del streams
    return drawn


def embeddings_of(model: BuiltModel) -> nn.Module:
    """The module whose output goes into a model's first layer: the largest around its table of words that has no layers
    in it.

    Raises:
        ModelError: There is none.
    """
    backbone: Any = model.backbone
    targets = {id(layer) for layer in model.layers.values()}
    with suppress(*CANNOT_RUN):
        words = backbone.get_input_embeddings()
        for module in backbone.modules():
            inside = list(module.modules())
            layers = (isinstance(one, nn.ModuleList) or id(one) in targets for one in inside)
            if any(one is words for one in inside) and not any(layers):
                found: nn.Module = module
                return found
    raise ModelError(f"{type(model.module).__name__} has no embeddings that noise could be added to", place="channel")


def receive(model: BuiltModel, error: float, drawing: Drawing, blocks: int = 0) -> RemovableHandle:
    """Have noise on what a model's embeddings say, or what comes out of its first blocks, until the handle is removed.

    Args:
        model: Built.
        error: Mean squared error of a number, in units of the mean square of its token's.
        drawing: Makes the noise.
        blocks: That come before the channel (`fedcore.round.training.Training.before_channel`).

    Raises:
        ModelError: It has no embeddings, or its blocks are in no list.
    """
    amplitude = math.sqrt(error)

    def received(said: Tensor) -> Tensor:
        size = said.detach().float().square().mean(-1, keepdim=True).sqrt().mul_(amplitude)
        found: Tensor = said + drawing(said).to(said.device).mul_(size).to(said.dtype)
        return found

    if blocks:
        return put_out(blocks_in(model.module, "channel")[blocks - 1], received)
    place = embeddings_of(model)

    def after(module: nn.Module, _: Any, said: Any) -> Tensor:
        if not isinstance(said, Tensor):
            raise ModelError(f"what {type(module).__name__} says is no tensor", place="channel")
        return received(said)

    return place.register_forward_hook(after)


@contextmanager
def over_channel(model: BuiltModel, plan: Plan, node: str) -> Iterator[StepNoise | None]:
    """Inside, a round's embeddings come over its channel, with what is to be told of each micro-batch; None in a round
    without one.

    Args:
        model: Built.
        plan: The round.
        node: This participant.

    Raises:
        ModelError: It has no embeddings.
    """
    channel = plan.training.channel
    if channel is None:
        yield None
        return
    noise_of_steps = StepNoise(plan, node)
    training = plan.training
    handle = receive(model, channel.error(training.run_seed, plan.round, node), noise_of_steps, training.before_channel)
    try:
        yield noise_of_steps
    finally:
        handle.remove()
