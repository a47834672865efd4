# SPDX-License-Identifier: Apache-2.0
"""Fed3R's client half: one pass over the node's rows, without gradients, and of each row the products of what goes into
the head and of its target.

Sums (`edge_client.worker.methods.sums`) lie in main memory. Where other rounds follow, the half that trains in them is
inside this one: it installs published states, so that a model computes with what was learned whatever the round is, and
it is there when its rounds begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edge_client.worker.data.tasks import Encoded, HeadTask, outputs, worker_task
from edge_client.worker.methods import client_half
from edge_client.worker.methods.interface import ClientHalf, Kept
from edge_client.worker.methods.sums import MomentSums, shapes_of
from edge_client.worker.model.built import BuiltModel
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.model.state import PublishedState
from fedcore.round.plan import Plan
from fedcore.round.training import HeadTraining
from fedcore.round.training.head import FEATURE_UNIT, MOMENTS, target_scale

__all__ = ["Fed3R"]

_PACKING_BYTES = 4 + 4 + 4
"""A number of the update while it is written: packed, as float32, as bytes."""


class Fed3R:
    """Second moments of features and targets.

    Args:
        model: Built; its head is one linear layer.
        training: Of the plan.
        artefact: What the run's artefact holds, for the half inside.
        inside: That half, where the model has it already.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()

    def __init__(
        self, model: BuiltModel, training: HeadTraining, artefact: Any = None, inside: ClientHalf | None = None
    ) -> None:
        if inside is None and training.then is not None:
            inside = client_half(model, training.then, artefact)
        self.then = inside
        self._model, self._name = model, _head_of(model)
        head = model.module.get_submodule(self._name)
        assert isinstance(head, nn.Linear)
        self._head, self._side = head, head.in_features + 1 + head.out_features
        self._opened: MomentSums | None = None
        # Of the batch that is going through, micro-batch by micro-batch.
        self._found: list[Tensor] = []

    @property
    def local(self) -> Mapping[str, nn.Parameter]:
        """Of the half inside."""
        return {} if self.then is None else self.then.local

    def outline(self, training: HeadTraining) -> Kept:
        """All that the rounds after this one keep, as far as they keep it between passes, and the sums."""
        inside = Kept() if self.then is None or training.then is None else self.then.outline(training.then)
        numbers = sum(rows * columns for rows, columns in shapes_of(self._side))
        packing = _PACKING_BYTES * self._side * (self._side + 1) // 2
        return replace(
            inside,
            state_bytes=inside.state_bytes + 8 * numbers,
            after_bytes=max(inside.after_bytes, packing),
        )

    def install(self, state: PublishedState) -> None:
        """Whatever was learned of layers; the head is installed with the tensors trained whole."""
        if self.then is not None:
            self.then.install(state)
        self._opened, self._found = None, []

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """Sums of nothing."""
        privacy = plan.training.privacy
        self._opened = MomentSums(self._head.in_features, self._head.out_features, privacy)
        self._found = []

    def begin(self, interval: int) -> None:
        """Nothing is trained."""

    def taken(self, encoded: Sequence[Encoded], plan: Plan, node: str) -> Sequence[Encoded]:
        """All of them."""
        return encoded

    def gather(
        self, batch: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device, *, first: bool
    ) -> float:
        """Take what a micro-batch says; see `edge_client.worker.methods.interface.Gathering`."""
        if first:
            self._found = []
        at_work = worker_task(task)
        assert isinstance(at_work, HeadTask)
        with torch.no_grad():
            with self._without_head():
                features = outputs(self._model, batch, pad_id, torch_device).float()
            said = F.linear(features, self._head.weight, self._head.bias)
            loss = float(at_work.loss(said.float(), batch, "sum"))
        middle, unit = target_scale(task)
        x = features.to("cpu", torch.float64) / FEATURE_UNIT
        y = (at_work.targets(batch) - middle) / unit
        self._found.append(torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64), y], dim=1))
        return loss

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """One pass forward; its rows count once it is through."""
        loss = run()
        rows, self._found = torch.cat(self._found), []
        self._sums.add(rows)
        # A loss has no noise: where rows are hidden it is not told.
        return 0.0 if self._sums.hides_rows else loss

    def finish(self, interval: int) -> None:
        """Nothing to do."""

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """The sums as they are: the halves of each float64 as two float32, bit for bit."""
        yield "rows", torch.tensor([self._sums.rows], dtype=torch.float64).view(torch.float32)
        for number, block in enumerate(self._sums.blocks):
            yield f"moments/{number}", block.view(torch.float32)

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Take the sums back."""
        self._sums.rows = int(_doubles(read("rows"))[0])
        self._sums.blocks = [_doubles(read(f"moments/{number}")) for number in range(len(self._sums.blocks))]

    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The means over this node's rows, packed.

        Raises:
            WorkerError: A number is larger than exact sums hold.
        """
        yield MOMENTS, self._sums.packed()

    @property
    def _sums(self) -> MomentSums:
        assert self._opened is not None, "the round is open"
        return self._opened

    @contextmanager
    def _without_head(self) -> Iterator[None]:
        """Inside, the model says what goes into its head, of the token that it would have answered by."""
        parent, _, last = self._name.rpartition(".")
        place = self._model.module.get_submodule(parent)
        setattr(place, last, nn.Identity())
        try:
            yield
        finally:
            setattr(place, last, self._head)


def _head_of(model: BuiltModel) -> str:
    """Where the head is.

    Raises:
        ModelError: It is not one linear layer.
    """
    prefix = f"{model.module.base_model_prefix}."
    found: list[str] = [
        str(name)
        for name, module in model.module.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not name.startswith(prefix)
    ]
    if len(found) != 1 or not isinstance(model.module.get_submodule(found[0]), nn.Linear):
        raise ModelError(f"a head of {', '.join(found) or 'nothing'} is not one linear layer", place="head.start")
    return found[0]


def _doubles(halves: Tensor) -> Tensor:
    """What `kept` made two float32 of."""
    return halves.clone().contiguous().view(torch.float64)
