# SPDX-License-Identifier: Apache-2.0
"""FedBPT's client half: a search for z by CMA-ES, whose function is the loss of a step's batch with the prompt E + A z
before each text. Forward passes alone; nothing has a gradient.

E (v, n) are the embeddings of words drawn by the run's seed. A (v n, d) is normal numbers of the run's seed in 256
steps, and its scale the power of two that brings A z, for z of normal numbers, closest to the root mean square of the
model's word embeddings, which is summed in one order: the same on every machine.

Legend: v virtual tokens, n features, d numbers of z."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.adapters.tokens import before_texts
from edge_client.worker.methods.interface import Kept
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.weights import row_blocks
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import VALUE_BITS
from fedcore.numbers.symmetric import unpacked
from fedcore.round.plan import Plan
from fedcore.round.training import EvolutionTraining, Training
from fedcore.round.training.evolution import FITNESS, MEAN, ROOT, SIGMA, SIGMAS
from fedcore.subspaces.evolution import Constants, Search, normal_draws
from fedcore.subspaces.rows.gaussian import GAUSSIAN_SQUARES, gaussian

__all__ = ["BlackBoxPrompt"]

_BLOCK_ROWS = 64
_SEARCH_MATRICES = 6
"""Matrices (d, d) in double precision that a generation has at once."""


class BlackBoxPrompt:
    """A prompt, and a search for it.

    Args:
        model: Built; its backbone sees the prompt before each text.
        training: Of the plan.
        artefact: None; the method asks for none.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()
    local: Mapping[str, nn.Parameter] = {}

    def __init__(self, model: BuiltModel, training: EvolutionTraining, artefact: None = None) -> None:
        del artefact
        self._model, self._seed, self._d = model, training.run_seed, training.intrinsic_dim
        self._tokens, self._population, self._sigma = training.num_virtual_tokens, training.population, training.sigma
        self._constants = Constants.of(self._d, self._population)
        backbone: Any = model.backbone
        self._embedding = backbone.get_input_embeddings()
        config: Any = model.module.config
        self._shape = (self._tokens, int(config.get_text_config().hidden_size))
        device = next(iter(model.layers.values())).base.device
        self._prompt = torch.zeros(self._shape, device=device)
        self._first: Tensor | None = None
        self._directions = torch.zeros(0, 0, dtype=torch.int8)
        self._scale = 1.0
        self._start = self._search = Search.begin(np.zeros(self._d), self._sigma, np.eye(self._d))
        self._plan: tuple[int, str, int] = (0, "", 0)
        self._sigmas: list[float] = []
        self._fitness = 0.0
        before_texts(model, lambda: self._prompt, self._tokens)

    def outline(self, training: Training) -> Kept:
        """A in bytes, the search's matrices and a block of A as floats; nothing trains by gradients."""
        assert isinstance(training, EvolutionTraining)
        self._freeze()
        numbers, d = math.prod(self._shape), self._d
        return Kept(
            state_bytes=d * numbers + 4 * _BLOCK_ROWS * numbers + 8 * _SEARCH_MATRICES * d * d + 3 * 4 * numbers,
            block_bytes=max(layer.compute_dtype.itemsize for layer in self._model.layers.values()),
        )

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """The prompt of the published mean, and where a search begins."""
        self._freeze()
        if self._first is None:
            self._first = self._words().to(self._prompt.device)
            self._directions = torch.from_numpy(gaussian(self._seed, MEAN, self._d, math.prod(self._shape)))
            self._scale = self._of_words()
        root = unpacked(state.entries[ROOT].values().astype(np.float64)) + np.eye(self._d)
        sigma = self._sigma + float(state.entries[SIGMA].values()[0, 0])
        mean = state.entries[MEAN].values()[0].astype(np.float64)
        self._start = self._search = Search.begin(mean, sigma, root @ root)
        self._take(mean)

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """A search from the published one."""
        self._plan = plan.training.run_seed, node, plan.round
        self._search, self._sigmas, self._fitness = self._start, [], 0.0

    def begin(self, interval: int) -> None:
        """Nothing is optimised by gradients."""

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """A generation on a step's batch; after the last one, the loss where the search ended, on that batch too."""
        seed, node, server_round = self._plan
        draws = normal_draws(self._population, self._d, seed, server_round, node, step)
        candidates, losses = self._search.ask(draws), []
        for candidate in candidates:
            self._take(candidate)
            losses.append(run())
        self._sigmas.append(self._search.sigma)
        self._search = self._search.tell(candidates, np.array(losses), self._constants)
        self._take(self._search.mean)
        self._fitness = run()
        return sum(losses) / len(losses)

    def finish(self, interval: int) -> None:
        """Nothing to do."""

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """The search as it is: the halves of each float64 as two float32, bit for bit."""
        search = self._search
        numbers = [search.sigma, float(search.generation), self._fitness, *self._sigmas]
        parts = {"numbers": np.array(numbers), "mean": search.mean, "covariance": search.covariance}
        for name, part in (parts | {"step": search.step_path, "cumulated": search.covariance_path}).items():
            yield name, torch.from_numpy(np.ascontiguousarray(part)).view(torch.float32)

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Take back what `kept` gave."""

        def doubles(name: str) -> NDArray[np.float64]:
            return np.asarray(read(name).clone().contiguous().view(torch.float64).numpy(), np.float64)

        numbers = doubles("numbers").tolist()
        paths = doubles("step"), doubles("cumulated")
        self._search = Search(doubles("mean"), numbers[0], doubles("covariance"), *paths, int(numbers[1]))
        self._fitness, self._sigmas = numbers[2], numbers[3:]

    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Where the search ended less where it began, the loss there, and the step sizes."""
        yield MEAN, (self._search.mean - self._start.mean).astype(np.float32)[None]
        yield FITNESS, np.array([[min(self._fitness, 2.0**VALUE_BITS)]], np.float32)
        yield SIGMAS, np.minimum(np.array([self._sigmas]), 2.0**VALUE_BITS).astype(np.float32)

    @torch.no_grad()
    def _take(self, z: NDArray[np.float64]) -> None:
        """Have the prompt of z stand before each text."""
        assert self._first is not None
        numbers = torch.from_numpy((z * self._scale).astype(np.float32))
        moved = torch.zeros(math.prod(self._shape))
        for rows in row_blocks(self._d, _BLOCK_ROWS):
            moved.addmv_(self._directions[rows].to(torch.float32).T, numbers[rows])
        self._prompt.copy_(moved.view(self._shape)).add_(self._first)

    def _freeze(self) -> None:
        """Whole tensors too: then a pass leaves nothing behind."""
        for tensor in self._model.tensors.values():
            tensor.requires_grad_(False)

    def _words(self) -> Tensor:
        """Embeddings of words drawn by the run's seed, float32 (v, n)."""
        vocabulary = int(self._embedding.weight.shape[0])
        shake = hashlib.shake_128(f"fedkrso words 1/{self._seed}".encode()).digest(8 * self._tokens)
        drawn = [int.from_bytes(shake[8 * i : 8 * i + 8], "little") % vocabulary for i in range(self._tokens)]
        found: Tensor = self._embedding(torch.tensor(drawn, device=self._embedding.weight.device))
        return found.to(torch.float32)

    def _of_words(self) -> float:
        """The scale of A."""
        weight, squares, count = self._embedding.weight, 0.0, 0
        for rows in row_blocks(weight.shape[0], 4096):
            block = weight[rows].to(torch.float32).cpu().double().numpy()
            # An accumulation has one order; a sum may take another on another processor.
            squares += float(np.add.accumulate(np.square(block).ravel())[-1])
            count += block.size
        deviation = math.sqrt(self._d * GAUSSIAN_SQUARES / 256)
        return 2.0 ** round(math.log2(math.sqrt(squares / count) / deviation)) if squares else 1.0
