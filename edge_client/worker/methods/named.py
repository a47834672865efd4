# SPDX-License-Identifier: Apache-2.0
"""What client halves have in common that train tensors whole with one Adam for the round, and those of them whose state
is named tensors beside the frozen layers: first values plus published changes, and at a round's end what training
added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.methods.interface import Kept, adam_state, restore_adam
from edge_client.worker.model.built import BuiltModel
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import Training

__all__ = ["NamedTensors", "OneAdam", "kept_whole"]


def kept_whole(parameters: Iterable[nn.Parameter], model: BuiltModel) -> Kept:
    """What parameters in float32 take, all of them training: values, gradients, moments, what a round began with, and
    the state as it came."""
    numbers = sum(parameter.numel() for parameter in parameters)
    return Kept(
        state_bytes=2 * numbers,
        trained_bytes=(4 + 4 + 4) * numbers,
        moments_bytes=(4 + 4) * numbers,
        block_bytes=max(layer.compute_dtype.itemsize for layer in model.layers.values()),
    )


class OneAdam(ABC):
    """Abstract. What parameters do that train whole with one Adam for the round: intervals only say when the disk gets
    them."""

    _adam: torch.optim.Optimizer | None

    @abstractmethod
    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What trains in this round, by name."""

    def begin(self, interval: int) -> torch.optim.Optimizer:
        """The same Adam goes on."""
        assert self._adam is not None
        return self._adam

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """One pass forward and backward."""
        return run()

    def finish(self, interval: int) -> None:
        """Nothing to do."""
        del interval

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """What trains, and its moments."""
        assert self._adam is not None
        for name, parameter in self._trained():
            yield from adam_state(name, parameter, self._adam)

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """What trains, and its moments."""
        assert self._adam is not None
        for name, parameter in self._trained():
            restore_adam(name, parameter, self._adam, read)


class NamedTensors(OneAdam):
    """Abstract.

    Args:
        model: Built; what the method adds is in its place.
        parameters: By the entry's name.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model, self._parameters = model, parameters
        self._first: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        self._entry_shapes: dict[str, tuple[int, ...]] = {}
        self._adam: torch.optim.Adam | None = None

    @abstractmethod
    def first_values(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """What each parameter holds before the first round, float32 of its shape; asked for once."""

    def trains(self, name: str, training: Training) -> bool:
        """Whether a parameter trains in a round."""
        return True

    def kept_beside(self) -> Kept:
        """What the parameters take, all of them training: values, gradients, moments, what a round began with, and the
        state as it came."""
        return kept_whole(self._parameters.values(), self._model)

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """First values plus published changes, one float32 addition a number."""
        self._adam = None
        if not self._first:
            self._first = {name: torch.from_numpy(value) for name, value in self.first_values()}
        for name, parameter in self._parameters.items():
            change = torch.from_numpy(state.entries[name].values())
            self._entry_shapes[name] = tuple(change.shape)
            self._start[name] = self._first[name] + change.reshape(parameter.shape)
            parameter.copy_(self._start[name].to(parameter.device))
            parameter.grad = None

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """One Adam for the parameters that train."""
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self.trains(name, plan.training))
        self._adam = torch.optim.Adam([one for _, one in self._trained()], lr=plan.training.learning_rate)

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """What trains, less what the round began with, as the entries' matrices."""
        for name, parameter in self._trained():
            yield name, (parameter.cpu() - self._start[name]).reshape(self._entry_shapes[name]).numpy()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self._parameters.items() if parameter.requires_grad)
