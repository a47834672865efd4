# SPDX-License-Identifier: Apache-2.0
"""Split learning's halves. On a node the front: its texts go through the model's first blocks, once, without gradients,
and what comes out is rounded and kept for the update. At the coordinator the back: all other layers train, in float32,
on what nodes sent (`edge_client.worker.programs.back` gives it to them, text by text).

Either computes the whole model with a published state where it is measured. The back's weights lie on a node's disk and
are not read there in a round (`Training.untouched`).

Legend: b texts of a micro-batch, t tokens, n features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.architecture.cut import blocks_in, each_text, passing_on, taken_in, without_weights
from edge_client.worker.data.batches import portions
from edge_client.worker.data.tasks import Encoded, outputs
from edge_client.worker.methods.interface import ClientHalf, Kept
from edge_client.worker.methods.whole.some import SomeLayers
from edge_client.worker.model.built import BuiltModel
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.numbers.accumulator import RowScaled, quantise_rows
from fedcore.round.plan import Plan
from fedcore.round.training import SplitTraining, Training
from fedcore.round.training.split import (
    ACTIVATION_UNIT,
    ACTIVATIONS,
    BEGINS,
    BLOCK_TOKENS,
    GOES_ON,
    TARGET_UNIT,
    TEXTS,
)
from fedcore.weights.schema import LayerSpec, ModelSchema

__all__ = ["SplitBack", "SplitFront", "cut_of", "split_half"]

_AFTER_BYTES = 18
"""A number of a block of activations while it is written: as a float, scaled, rounded, twice as integers."""


def split_half(model: BuiltModel, training: SplitTraining, artefact: None = None) -> ClientHalf:
    """The half of a plan's stage.

    Args:
        model: Built.
        training: Of the plan.
        artefact: None; the method asks for none.
    """
    del artefact
    return SplitFront(model, training) if training.stage == "activations" else SplitBack(model, training)


def cut_of(model: BuiltModel, front: int) -> tuple[nn.Module, list[nn.Module]]:
    """The last block of the front, and the blocks behind it.

    Raises:
        ModelError: The blocks are in no list, or not so many.
    """
    blocks = list(blocks_in(model.module, "method.name"))
    if not 0 < front < len(blocks):
        raise ModelError(f"{front} blocks on nodes, of a model of {len(blocks)}", place="method.front")
    return blocks[front - 1], blocks[front:]


@dataclass
class _Gathered:
    """Activations of texts, one behind the other.

    Attributes:
        numbers: Of each text (t, n), int8 or int16.
        exponents: Of each text (t,), int8.
        targets: Of each text.
    """

    numbers: list[NDArray[Any]] = field(default_factory=list)
    exponents: list[NDArray[np.int8]] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)

    def forget(self, texts: int) -> None:
        """All but the first texts."""
        del self.numbers[texts:], self.exponents[texts:], self.targets[texts:]


class SplitFront(SomeLayers):
    """Gathers activations.

    Args:
        model: Built.
        training: Of the plan.
    """

    supersedes: ClassVar[bool] = False
    then: ClientHalf | None = None

    def __init__(self, model: BuiltModel, training: SplitTraining) -> None:
        super().__init__(model, _back(model, training))
        self._model, self._front = model, training.front
        self._tokens, self._bits = training.tokens, training.bits
        cut_of(model, training.front)
        self._width = next(iter(self.layers.values())).in_features
        self._found, self._of_interval, self._of_batch = _Gathered(), 0, 0

    def block(self, training: Training) -> tuple[str, ...]:
        """Nothing trains on a node."""
        return ()

    def outline(self, training: Training) -> Kept:
        """The published changes, and the round's activations; the back computes nothing."""
        for block in cut_of(self._model, self._front)[1]:
            without_weights(block)
        gathered = self._tokens * self._width * (1 if self._bits <= 8 else 2)
        writing = _AFTER_BYTES * min(BLOCK_TOKENS, self._tokens) * self._width
        held = self.held(0)
        return replace(held, state_bytes=held.state_bytes + gathered, block_bytes=4, after_bytes=writing)

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """Nothing is gathered yet."""
        super().open(plan, node, rank)
        self._found, self._of_interval, self._of_batch = _Gathered(), 0, 0

    def begin(self, interval: int) -> Any:
        """Nothing trains."""
        self._of_interval = len(self._found.targets)

    def taken(self, encoded: Sequence[Encoded], plan: Plan, node: str) -> Sequence[Encoded]:
        """The round's portion of a node's texts, the shortest first: as many as the plan's tokens have room for. Each
        round has the next, and begins again behind the last."""
        found = portions(encoded, self._tokens, plan.training.run_seed, node)
        return sorted(found[(plan.round - 1) % len(found)], key=lambda one: len(one.ids))

    def gather(
        self, batch: Sequence[Encoded], task: TaskSection, pad_id: int, torch_device: torch.device, *, first: bool
    ) -> float:
        """Take what the front makes of a micro-batch; see `edge_client.worker.methods.interface.Gathering`. Without a
        back there is no loss."""
        if first:
            self._found.forget(self._of_batch)
        seen: list[Tensor] = []

        def see(hidden: Tensor) -> Tensor:
            seen.append(hidden)
            return hidden

        back = cut_of(self._model, self._front)[1]
        handle = taken_in(back[0], see)
        try:
            with torch.no_grad(), passing_on(back):
                outputs(self._model, batch, pad_id, torch_device)
        finally:
            handle.remove()
        states = seen[0].float().cpu()
        if states.shape[2] != self._width:
            raise ModelError(f"hidden states have {states.shape[2]} numbers, not {self._width}", place="method.name")
        for row, hidden in zip(batch, each_text(states, [len(row.ids) for row in batch]), strict=True):
            scaled: NDArray[np.float32] = (hidden / ACTIVATION_UNIT).numpy()
            rounded = quantise_rows(scaled, self._bits, place=ACTIVATIONS)
            self._found.numbers.append(rounded.q.astype(np.int8 if self._bits <= 8 else np.int16))
            self._found.exponents.append(rounded.exponent)
            assert isinstance(row.target, int | float)
            self._found.targets.append(row.target / TARGET_UNIT)
        return 0.0

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """One pass forward; its texts count once it is through."""
        loss = run()
        self._of_batch = len(self._found.targets)
        return loss

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """The interval's texts, all numbers as floats."""
        start = self._of_interval
        numbers, exponents = self._found.numbers[start:], self._found.exponents[start:]
        yield "numbers", torch.from_numpy(np.concatenate(numbers).astype(np.float32))
        yield "exponents", torch.from_numpy(np.concatenate(exponents).astype(np.float32))
        lengths = torch.tensor([len(one) for one in numbers], dtype=torch.float32)
        yield "texts", torch.stack([lengths, torch.tensor(self._found.targets[start:], dtype=torch.float32)])

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Take them back."""
        lengths, targets = read("texts").numpy()
        places = np.cumsum(lengths.astype(np.int64))[:-1]
        numbers = read("numbers").numpy().astype(np.int8 if self._bits <= 8 else np.int16)
        self._found.numbers += np.split(numbers, places)
        self._found.exponents += np.split(read("exponents").numpy().astype(np.int8), places)
        self._found.targets += targets.astype(float).tolist()
        self._of_batch = len(self._found.targets)

    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Activations block by block, and where each text begins; what no text has is zero."""
        numbers, exponents = np.concatenate(self._found.numbers), np.concatenate(self._found.exponents)
        for number, start in enumerate(range(0, self._tokens, BLOCK_TOKENS)):
            rows = slice(start, min(start + BLOCK_TOKENS, self._tokens))
            block = np.zeros((rows.stop - start, self._width), np.float32)
            values = RowScaled(numbers[rows].astype(np.int16), exponents[rows]).values()
            block[: len(values)] = values
            yield f"{ACTIVATIONS}{number}", block
        texts = np.zeros((2, self._tokens), np.float32)
        texts[0, : len(numbers)] = GOES_ON
        begins = np.cumsum([0, *(len(one) for one in self._found.numbers)])[:-1]
        texts[0, begins], texts[1, begins] = BEGINS, self._found.targets
        yield TEXTS, texts


class SplitBack(SomeLayers):
    """Trains the back.

    Args:
        model: Built.
        training: As the coordinator has it.
    """

    def __init__(self, model: BuiltModel, training: SplitTraining) -> None:
        super().__init__(model, _back(model, training))
        last, _ = cut_of(model, training.front)
        for block in blocks_in(model.module, "method.name")[: training.front]:
            without_weights(block)
        self.last = last
        """The last block of the front, which gives out what is given to it."""

    def block(self, training: Training) -> tuple[str, ...]:
        """All of the back."""
        return tuple(self.layers)

    def outline(self, training: Training) -> Kept:
        """All of the back in float32."""
        return self.held(sum(layer.out_features * layer.in_features for layer in self.layers.values()))


def _back(model: BuiltModel, training: SplitTraining) -> tuple[str, ...]:
    """Names of the layers behind the front."""
    layers = tuple(LayerSpec(name, one.out_features, one.in_features) for name, one in model.layers.items())
    return tuple(layer.name for layer in training.back(ModelSchema(layers, ())))
