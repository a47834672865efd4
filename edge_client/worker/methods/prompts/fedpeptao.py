# SPDX-License-Identifier: Apache-2.0
"""FedPepTAO's client half: prompts before the keys and values of every layer train; those of chosen layers are shared,
the others stay on the node.

In the round that scores the layers nothing is trained and no prompts stand there yet: of each batch, the mean hidden
state of every text behind each layer, and of these the eigenvalues e of the texts' matrix of cosines, sum of ln e + 1 /
e. A layer that says much the same of all texts has small eigenvalues and a high score. (The authors' code takes all
positions of a text as one vector, padding too, and one batch. The mean does not depend on how a batch is padded or
divided, and needs no memory.)

Legend: b texts of a batch, t tokens, n features, v virtual tokens, w width of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.worker.adapters.tokens import before_keys
from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.named import OneAdam, kept_whole
from edge_client.worker.model.built import BuiltModel
from fedcore.errors import ModelError
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import VALUE_BITS
from fedcore.round.plan import Plan
from fedcore.round.training import PromptTraining, Training
from fedcore.round.training.prompts import PROMPTS, SCORE_UNIT, SCORES, chosen_layers
from fedcore.weights.initial import initial_adapter
from fedcore.weights.schema import AdapterTensor, LayerSpec, ModelSchema

__all__ = ["Prompts", "layer_score"]

_SPREAD = 3**0.5
"""Uniform numbers within it have a variance of one, as PEFT's and the authors'."""
_LEAST = 1e-5


class Prompts(OneAdam):
    """A layer's prompts are one parameter (v, 2 w): keys, then values.

    Args:
        model: Built; its attention sees the prompts.
        training: Of the plan.
        artefact: None; the method asks for none.

    Raises:
        ModelError: The model has no attention that takes prompts.
    """

    supersedes: ClassVar[bool] = True
    rank: int = 0
    subspaces: tuple[int, ...] = ()

    def __init__(self, model: BuiltModel, training: PromptTraining, artefact: None = None) -> None:
        del artefact
        specs = tuple(LayerSpec(name, layer.out_features, layer.in_features) for name, layer in model.layers.items())
        schema = ModelSchema(specs, ())
        keys = training.keys(schema)
        self._model, self._seed, self._count = model, training.run_seed, training.shared(schema)
        self._tokens, self._shares_all = training.num_virtual_tokens, training.shares_model
        device, width = next(iter(model.layers.values())).base.device, 2 * keys[0].rows
        prompts = [nn.Parameter(torch.zeros(self._tokens, width, device=device)) for _ in keys]
        model.backbone.add_module("prompts", nn.ParameterList(prompts))
        self._prompts, self._blocks = prompts, _blocks(model.backbone, len(prompts))
        self._first: list[Tensor] = []
        self._start: dict[int, Tensor] = {}
        # Which layers' prompts are shared; before that is known there are none.
        self._chosen: tuple[int, ...] = tuple(range(len(prompts)))
        self._scores: NDArray[np.float64] | None = None
        self._batches = 0
        self._adam: torch.optim.Adam | None = None
        before_keys(model, lambda: self._tokens if self._chosen else 0, self._keys_and_values, "method.name")

    @property
    def local(self) -> Mapping[str, nn.Parameter]:
        """The prompts of the layers that were not chosen."""
        if not self._chosen:
            return {}
        return {f"/prompt/{layer}": one for layer, one in enumerate(self._prompts) if layer not in self._chosen}

    def outline(self, training: Training) -> Kept:
        """All prompts with gradients and moments, and what a round began with; the published ones as they came."""
        return kept_whole(self._prompts, self._model)

    @torch.no_grad()
    def install(self, state: PublishedState) -> None:
        """First values, and of shared layers the published changes; what a node keeps for itself is put there after."""
        self._adam = self._scores = None
        self._first = self._first or [torch.from_numpy(value) for value in self._first_values()]
        everything = tuple(range(len(self._prompts)))
        known = (
            everything if self._shares_all else chosen_layers(state.entries[SCORES].values()[0].tolist(), self._count)
        )
        self._chosen = known
        changes = torch.from_numpy(state.entries[PROMPTS].values())
        self._start = {
            layer: self._first[layer] + changes[place].view_as(self._first[layer]) for place, layer in enumerate(known)
        }
        for layer, parameter in enumerate(self._prompts):
            parameter.copy_(self._start.get(layer, self._first[layer]).to(parameter.device))
            parameter.grad = None

    def open(self, plan: Plan, node: str, rank: int) -> None:
        """One Adam for all prompts, or scores of nothing."""
        training = plan.training
        assert isinstance(training, PromptTraining)
        self._batches, self._scores = 0, None
        if training.stage == "scores":
            self._scores = np.zeros(len(self._prompts))
            self._adam = None
        else:
            self._adam = torch.optim.Adam(self._prompts, lr=training.learning_rate)

    def begin(self, interval: int) -> Any:
        """The same Adam goes on; none with scores."""
        return self._adam

    def measure(self, step: int, run: Callable[[], float]) -> float:
        """A pass forward and backward; with scores, forward alone, and what each layer says of the batch."""
        if self._scores is None:
            return run()
        with self._watched() as found:
            loss = run()
        self._scores += [layer_score(torch.cat(vectors).double().cpu().numpy()) for vectors in found]
        self._batches += 1
        return loss

    def kept(self, interval: int) -> Iterator[tuple[str, Tensor]]:
        """Prompts with their moments; or the sums of scores as they are, the halves of each as two float32."""
        if self._scores is None:
            yield from super().kept(interval)
        else:
            sums = torch.from_numpy(np.append(self._scores, self._batches))
            yield "scores", sums.view(torch.float32)

    def restore(self, interval: int, rank: int, read: Callable[[str], Tensor]) -> None:
        """Take back what `kept` gave."""
        if self._scores is None:
            super().restore(interval, rank, read)
        else:
            sums = read("scores").clone().contiguous().view(torch.float64).numpy()
            self._scores, self._batches = sums[:-1].copy(), int(sums[-1])

    @torch.no_grad()
    def changes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Scores, or the shared prompts less what the round began with."""
        if self._scores is not None:
            mean = self._scores / self._batches / SCORE_UNIT
            yield SCORES, np.minimum(mean, 2.0**VALUE_BITS).astype(np.float32)[None]
        else:
            rows = [(self._prompts[layer].cpu() - self._start[layer]).flatten() for layer in self._chosen]
            yield PROMPTS, torch.stack(rows).numpy()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((f"/prompt/{layer}", parameter) for layer, parameter in enumerate(self._prompts))

    def _first_values(self) -> Iterator[NDArray[np.float32]]:
        for layer, parameter in enumerate(self._prompts):
            spec = AdapterTensor(f"/prompt/{layer}", tuple(parameter.shape), spread=_SPREAD)
            yield initial_adapter(spec, self._seed)

    def _keys_and_values(self, layer: int, heads: int) -> tuple[Tensor, Tensor] | None:
        """Of a layer, (heads, v, w / heads) each; none before it is known whose are shared."""
        if not self._chosen:
            return None
        both = self._prompts[layer].view(self._tokens, 2, heads, -1)
        return both[:, 0].transpose(0, 1), both[:, 1].transpose(0, 1)

    @contextmanager
    def _watched(self) -> Iterator[list[list[Tensor]]]:
        """Inside, each layer's mean hidden states (b, n) of the texts that go through, micro-batch by micro-batch."""
        found: list[list[Tensor]] = [[] for _ in self._blocks]
        mask: list[Tensor | None] = [None]

        def before(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
            mask[0] = kwargs.get("attention_mask")

        def after(layer: int, said: Any) -> None:
            hidden: Tensor = said if isinstance(said, Tensor) else said[0]
            shape = hidden.shape[:2]
            real = hidden.new_ones(shape) if mask[0] is None else mask[0].to(hidden.dtype).view(shape)
            found[layer].append((hidden.detach() * real[..., None]).sum(1) / real.sum(1, keepdim=True))

        hooks: list[Any] = [self._model.backbone.register_forward_pre_hook(before, with_kwargs=True)]
        for layer, block in enumerate(self._blocks):
            hooks.append(block.register_forward_hook(lambda _, __, said, layer=layer: after(layer, said)))
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def layer_score(vectors: NDArray[np.float64]) -> float:
    """What a layer's vectors (b, n) of different texts say of it: sum of ln e + 1 / e over the eigenvalues of their
    matrix of cosines.

    Example:
        >>> round(layer_score(np.eye(3)), 3), layer_score(np.ones((3, 2))) > 1e5
        (3.0, True)
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    eigenvalues = np.maximum(np.linalg.eigvalsh(unit @ unit.T), 0.0) + _LEAST
    return float(np.sum(np.log(eigenvalues) + 1 / eigenvalues))


def _blocks(backbone: nn.Module, count: int) -> list[nn.Module]:
    """The model's layers, in order.

    Raises:
        ModelError: There are others than layers that make keys.
    """
    found = [module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not found:
        words = f"{count} layers make keys, and as many blocks are not found in {type(backbone).__name__}"
        raise ModelError(words, place="method.name", remedy="use fedkrso")
    return list(found[0])
