# SPDX-License-Identifier: Apache-2.0
"""Steps that hide each example (DP-SGD, Abadi et al., arXiv 1607.00133): batches by secret coins, gradients cut one by
one, noise on their sum.

- Every example comes into every batch by a coin of its own (Poisson sampling), with probability batch size over
  examples. A shuffled order, which the run's seed decides, is one that everybody knows, and hides nothing.
- An example's gradient, of all that trains together, is scaled down to a norm of C; the sum over the batch gets normal
  noise of standard deviation z C and is divided by the batch size that the plan says, whatever came.
- The loss that is told is a part of the same vector: it would tell of the examples too.

Coins and noise come from 256 bits of the system's generator, never from the run's seed; nothing of them is kept. Noise
is float32 as the gradients are. What is told of them is rounded far more coarsely: whole numbers of few bits, after
many steps."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor

from edge_client.worker.data.tasks import Encoded, HeadTask, outputs, worker_task
from edge_client.worker.methods.interface import ClientHalf
from edge_client.worker.methods.perexample import ByExample, ExampleGradients
from edge_client.worker.model.built import BuiltModel
from fedcore.errors import ConfigError, DataError, WorkerError
from fedcore.round.plan import Plan
from fedcore.round.training import HeadTraining, PrivateTraining
from fedcore.system.durable import write_durably

__all__ = ["PrivateSteps", "TrainedOnce", "poisson_batches", "private_steps", "require_enough", "secret_generator"]

_LOSS_SHARE: Final = 0.1
"""Of the clip, for the loss: 0.5 % less are left for the gradient."""
_LARGEST_LOSS: Final = 4.0
"""Of an example; what is larger counts as this."""


def secret_generator() -> np.random.Generator:
    """Seeded by the system."""
    return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))


def require_enough(privacy: PrivateTraining, examples: int) -> None:
    """Check that what is promised holds for a node with so many examples.

    Raises:
        DataError: It would not.
    """
    if examples < privacy.least_examples:
        raise DataError(
            f"{examples} examples are here, and what the job promises of privacy holds from "
            f"{privacy.least_examples} on",
            place="privacy.example.least_examples",
        )
    if privacy.delta * examples >= 1:
        raise DataError(
            f"a delta of {privacy.delta:g} means nothing for {examples} examples",
            place="privacy.example.delta",
            remedy=f"the job needs less than {1 / examples:.1g}",
        )


def poisson_batches(
    encoded: Sequence[Encoded], batch_size: int, generator: np.random.Generator
) -> Iterator[list[Encoded]]:
    """Endless batches into which every example comes by a coin of its own; of `batch_size` on average, some are empty.

    Args:
        encoded: The node's examples.
        batch_size: Of the plan, at most as many.
        generator: Secret.
    """
    share = batch_size / len(encoded)
    while True:
        yield [encoded[int(place)] for place in np.flatnonzero(generator.random(len(encoded)) < share)]


class TrainedOnce:
    """Which round a node has trained last, on its disk: a second update of the same round would tell more than is
    counted.

    Args:
        folder: Of this node.
        run: Name and id of the run, and the node's.
    """

    def __init__(self, folder: Path, *run: str) -> None:
        self._path = folder / f"private-{hashlib.sha256(msgspec.msgpack.encode(run)).hexdigest()[:16]}.txt"

    def begin(self, server_round: int) -> None:
        """Say that the round's update is about to be written; on disk when this returns.

        Raises:
            WorkerError: It has been before.
        """
        self.require(server_round)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, str(server_round).encode())

    def require(self, server_round: int) -> None:
        """Check that the round has not been trained yet.

        Raises:
            WorkerError: It has.
        """
        last = int(self._path.read_text()) if self._path.exists() else 0
        if server_round <= last:
            raise WorkerError(
                f"round {server_round} was trained here before, and another update of it would tell more of this "
                "node's texts than is counted",
                place="privacy.example",
            )


def private_steps(model: BuiltModel, half: ClientHalf, plan: Plan, examples: int) -> PrivateSteps | None:
    """What a round's steps go through where it hides examples; else None, and where sums are told in which the half
    hides them itself.

    Args:
        model: Built.
        half: Of the method; when steps begin it has gradients by example.
        plan: The round.
        examples: Of this node.

    Raises:
        DataError: They are too few for what is promised.
        ConfigError: Method or task cannot.
    """
    privacy = plan.training.privacy
    if privacy is None or privacy.level != "example":
        return None
    require_enough(privacy, examples)
    if isinstance(plan.training, HeadTraining):
        return None
    task = worker_task(plan.task)
    if not isinstance(task, HeadTask) or not isinstance(half, ByExample):
        raise ConfigError(
            f"{plan.task.kind} by {plan.training.method} has no gradient for each example", place="privacy.example"
        )
    return PrivateSteps(model, half, task, privacy, plan.training.batch_size, secret_generator())


class PrivateSteps:
    """A round's steps.

    Args:
        model: Built.
        half: Of the method.
        task: Has each example's loss.
        privacy: What is promised.
        batch_size: Of a batch, on average.
        generator: Secret.
    """

    def __init__(
        self,
        model: BuiltModel,
        half: ByExample,
        task: HeadTask,
        privacy: PrivateTraining,
        batch_size: int,
        generator: np.random.Generator,
    ) -> None:
        self._model, self._half, self._task, self._privacy = model, half, task, privacy
        self._batch_size, self._generator = batch_size, generator
        self._sums: dict[str, Tensor] = {}
        self._losses = 0.0

    @property
    def _examples(self) -> ExampleGradients:
        assert self._half.examples is not None, "the round is open"
        return self._half.examples

    def batches(self, encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
        """See `poisson_batches`."""
        return poisson_batches(encoded, self._batch_size, self._generator)

    def begin(self) -> None:
        """A batch begins, or begins again on a lower memory step."""
        self._sums, self._losses = {}, 0.0

    def micro_batch(self, part: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> None:
        """Go forward and backward, and add up what is left of each example."""
        said = outputs(self._model, part, pad_id, torch_device).float()
        losses = self._task.loss(said, part, "none")
        losses.sum().backward()  # type: ignore[no-untyped-call]
        found = self._examples.found()
        with torch.no_grad():
            factors = _factors(found, self._privacy.clip * (1 - _LOSS_SHARE**2) ** 0.5)
            for name, own in found.items():
                # What is not finite has a factor of zero, and zero times it would not be zero.
                flat = torch.nan_to_num(own.flatten(1), 0.0, 0.0, 0.0)
                total = (factors.to(own.dtype) @ flat).view(own.shape[1:])
                self._sums[name] = self._sums[name] + total if name in self._sums else total
            kept = torch.nan_to_num(losses, _LARGEST_LOSS, _LARGEST_LOSS, 0.0).clamp(0.0, _LARGEST_LOSS)
            self._losses += float(kept.sum())
        for _, parameter in self._examples.parameters():
            # Of the head autograd made one as well, of all examples as they are.
            parameter.grad = None

    def finish(self) -> float:
        """Leave gradients with noise in what trains; the mean loss with noise, which may come out below zero."""
        sigma = self._privacy.noise_multiplier * self._privacy.clip
        for name, parameter in self._examples.parameters():
            noise = self._generator.standard_normal(tuple(parameter.shape), dtype=np.float32) * np.float32(sigma)
            total = torch.from_numpy(noise).to(parameter.device)
            if name in self._sums:
                total += self._sums[name]
            parameter.grad = (total / self._batch_size).to(parameter.dtype)
        unit = _LARGEST_LOSS / (_LOSS_SHARE * self._privacy.clip)
        return (self._losses + unit * sigma * float(self._generator.standard_normal())) / self._batch_size


def _factors(found: dict[str, Tensor], clip: float) -> Tensor:
    """By what each example is scaled down, float64 (examples,); zero where its gradient is not finite."""
    squares = torch.stack([own.flatten(1).double().square().sum(dim=1) for own in found.values()]).sum(dim=0)
    factors = (clip / squares.sqrt()).clamp(max=1.0)
    return torch.where(squares.isfinite(), factors, torch.zeros_like(factors))
