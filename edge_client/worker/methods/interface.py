# SPDX-License-Identifier: Apache-2.0
"""What a federated method is in the worker: the client half, which `edge_client.worker.train.round` trains and
`replica` installs states in.

A half changes a built model's target layers to what the method trains, makes them compute with a published state, and
says what training changed. Everything else (batches, the learning rate's course, tensors trained whole, finished
intervals on disk) is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.data.batches import Encoded
from fedcore.config.sections import TaskSection
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import Training

__all__ = ["ClientHalf", "Gathering", "Kept", "adam_state", "restore_adam", "trained_by"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a method keeps in memory in the middle of a run, beyond the model as it was built and what a pass leaves
    behind; in bytes."""

    state_bytes: int = 0
    """There all the time: what was learned, projections, accumulators, and weights of the method's own that do not
    train."""
    rank_bytes: int = 0
    """Of a factor whose rank a device may choose: value, gradient and two moments, for one unit of rank."""
    trained_bytes: int = 0
    """Of all else that trains: values that the model as built does not have, values that the round began with, and
    gradients."""
    moments_bytes: int = 0
    """The moments of that."""
    signs_bytes: int = 0
    """A layer's projections as the products use them, of the layer where they are most."""
    block_bytes: int = 0
    """A number of a block of W that a product makes in floating point; 0 where W is there as it is used."""
    side_bytes: int = 0
    """What was learned of a row of W, as the products use it beside the block."""
    dequantised_bytes: int = 0
    """W of all target layers in float32 with what was learned merged in, which the method can use instead of blocks; 0
    where it cannot."""
    after_bytes: int = 0
    """What the optimiser's step and making the update take for a while, when nothing is left of a pass."""


class ClientHalf(Protocol):
    """A method on one model. What makes it is called with the model (`BuiltModel`), the plan's training, and what the
    run's artefact holds or None: `(model, training, artefact=None)`.

    A round is `open`, then for each interval `begin`, for each step `measure` and the optimiser, and `finish`, then
    `changes`."""

    supersedes: ClassVar[bool]
    """Whether what a finished interval keeps makes what earlier ones kept unnecessary."""

    @property
    def rank(self) -> int:
        """What is trained of the plan's rank; 0 in methods without one."""
        ...

    @property
    def subspaces(self) -> tuple[int, ...]:
        """Indices of the seeds that the round uses, ascending; none in methods without."""
        ...

    @property
    def local(self) -> Mapping[str, nn.Parameter]:
        """What the method trains and leaves on this node, by name; none in most methods. `install` sets first values,
        and who keeps them the later ones."""
        ...

    def outline(self, training: Training) -> Kept:
        """Make the layers what they are in training, of shapes only, and say what is kept beside them.

        Called in place of all else, on a model of fake tensors, under their mode: what is made by it takes no memory.
            Where rounds differ, as the one that needs the most."""
        ...

    def install(self, state: PublishedState) -> None:
        """Have the model compute with a published state; what was trained since is gone."""
        ...

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """Begin a round.

        Args:
            plan: The round.
            node: This participant.
            rank: r', at most the plan's rank, where it has one.
        """
        ...

    def begin(self, interval: int) -> torch.optim.Optimizer | None:
        """Begin an interval; the optimiser of what it trains, or None where nothing is."""
        ...

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """Leave gradients of a step's batch in what trains, and give its mean loss.

        Most methods call `run` once, which goes forward and backward. One without a backward pass of its own may change
        the model and call it several times; then the tensors trained whole need one gradient from all of them.

        Args:
            step: Of the round, from 0.
            run: Runs the batch, adds to the gradients of what requires one, and gives the mean loss.
        """
        ...

    def finish(self, interval: int) -> None:
        """End an interval."""
        ...

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """What a finished interval must leave on disk, float32, by name."""
        ...

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Take back what `kept` gave, in an opened round; `rank` as it was then."""
        ...

    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """What the round's update says of each entry (`fedcore.round.training`), as this node trained it."""
        ...


@runtime_checkable
class Gathering(Protocol):
    """What a half has beside, whose rounds are one pass over the rows without gradients
    (`fedcore.round.training.Training.one_pass`): a batch's micro-batches go to `gather`, and then `measure` ends."""

    then: ClientHalf | None
    """The half that trains in the rounds that follow; it has installed what this one has."""

    def taken(self, encoded: Sequence[Encoded], plan: Plan, node: str) -> Sequence[Encoded]:
        """The rows of a node that a round goes over, in order.

        Args:
            encoded: All of them.
            plan: The round.
            node: Its name.
        """
        ...

    def gather(
        self, batch: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device, *, first: bool
    ) -> float:
        """Take what a micro-batch says.

        Args:
            batch: The micro-batch.
            task: Of the plan.
            pad_id: Token that pads.
            torch_device: Where to compute.
            first: Of its batch; one that ran out of memory begins again, and what was taken of it counts no more.

        Returns:
            Its loss, summed over its examples.
        """
        ...


def trained_by(half: ClientHalf) -> ClientHalf:
    """The half that trains by gradients: the one inside, of a half that gathers before other rounds."""
    return half.then if isinstance(half, Gathering) and half.then is not None else half


def adam_state(name: str, parameter: Tensor, adam: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """A parameter with its Adam, as an interval keeps it."""
    yield f"{name}.value", parameter
    for part, value in adam.state[parameter].items():
        yield f"{name}.{part}", value


def restore_adam(name: str, parameter: Tensor, adam: torch.optim.Optimizer, read: Callable[[str], Tensor]) -> None:
    """Take back what `adam_state` gave; an optimiser without moments has none to take."""
    with torch.no_grad():
        parameter.copy_(read(f"{name}.value"))
    if not isinstance(adam, torch.optim.Adam):
        return
    moments = {part: read(f"{name}.{part}").to(parameter.device) for part in ("exp_avg", "exp_avg_sq")}
    adam.state[parameter] = {"step": read(f"{name}.step"), **moments}
