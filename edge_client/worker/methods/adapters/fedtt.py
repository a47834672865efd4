# SPDX-License-Identifier: Apache-2.0
"""FedTT's client half: behind some layers a bottleneck adapter whose two matrices are tensor trains.

    y = h + U gelu(D^T h)      h a layer's output (m,), D and U (m, b), each the product of its cores

Legend: m features out, b numbers of the bottleneck, t tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edge_client.worker.methods.interface import Kept
from edge_client.worker.methods.named import NamedTensors
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import SubspaceLinear
from edge_client.worker.model.standin import StandIn
from fedcore.errors import ModelError
from fedcore.round.training import TensorTrainTraining, Training
from fedcore.round.training.tensortrain import ALL_CORES
from fedcore.weights.initial import initial_adapter
from fedcore.weights.schema import AdapterTensor
from fedcore.weights.tensortrain import CORES, core_shapes, first_spread

__all__ = ["TensorTrains", "contracted"]


class TensorTrains(NamedTensors):
    """Cores, all of them or one of each adapter in turn.

    Args:
        model: Built; adapters take the places of the layers that they stand behind.
        training: Of the plan.
        artefact: None; the method asks for none.
    """

    def __init__(self, model: BuiltModel, training: TensorTrainTraining, artefact: None = None) -> None:
        del artefact
        self._seed, self._b, self._rank = training.run_seed, training.bottleneck, training.train_rank
        self._behind = [layer for name, layer in model.layers.items() if training.is_behind(name)]
        self._shapes = core_shapes(self._behind[0].out_features, self._b, self._rank)
        device, rows = self._behind[0].base.device, len(self._behind)
        cores = nn.ParameterDict(
            {
                # No name of a parameter has a slash in it.
                name.replace("/", "_"): nn.Parameter(
                    torch.zeros(rows, math.prod(self._shapes[int(name[-1])]), device=device)
                )
                for name in ALL_CORES
            }
        )
        model.backbone.add_module("tensor_trains", cores)
        model.put_around(
            {layer.name: _Bottleneck(layer, self._matrices(cores, index)) for index, layer in enumerate(self._behind)}
        )
        super().__init__(model, {f"/{name}": cores[name.replace("/", "_")] for name in ALL_CORES})

    def _matrices(self, cores: nn.ParameterDict, index: int) -> Callable[[], tuple[Tensor, Tensor]]:
        """What makes D and U of a layer of its cores."""

        def made() -> tuple[Tensor, Tensor]:
            m = self._behind[index].out_features
            both = []
            for side in ("down", "up"):
                own = [cores[f"{side}_{j}"][index].view(shape) for j, shape in enumerate(self._shapes)]
                both.append(contracted(own, m, self._b))
            return both[0], both[1]

        return made

    def outline(self, training: Training) -> Kept:
        """All cores, as if all trained: there are so few of them. Where they train in turn, the passes are those of a
        round of D's: its products keep h, those of U what the bottleneck has, which is less."""
        assert isinstance(training, TensorTrainTraining)
        if len(training.trained) < len(ALL_CORES):
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name.startswith("/down/"))
        return self.kept_beside()

    def trains(self, name: str, training: Training) -> bool:
        """As the plan names them."""
        assert isinstance(training, TensorTrainTraining)
        return name[1:] in training.trained

    def first_values(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Numbers of the run's seed, such that D's and U's have the variance of a fresh linear layer's; up's last core
        is zero, so that an adapter changes nothing at first."""
        for name, parameter in self._parameters.items():
            shape, inputs = self._shapes[int(name[-1])], self._behind[0].out_features if "down" in name else self._b
            spread = first_spread(self._behind[0].out_features, self._b, self._rank, inputs)
            spread = 0.0 if name == f"/up/{CORES - 1}" else spread
            rows = (AdapterTensor(f"{layer.name}{name}", shape, spread=spread) for layer in self._behind)
            value = np.stack([initial_adapter(row, self._seed).ravel() for row in rows])
            assert value.shape == tuple(parameter.shape)
            yield name, value


class _Bottleneck(nn.Module):
    """A layer with an adapter behind it.

    Args:
        own: The layer.
        matrices: Gives D and U (m, b), of cores that the model has.
    """

    def __init__(self, own: SubspaceLinear, matrices: Callable[[], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.own, self._matrices = own, matrices
        self.in_features, self.out_features = own.in_features, own.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) to (..., m)."""
        h: Tensor = self.own(x)
        down, up = self._matrices()
        return h + (F.gelu(h.to(torch.float32) @ down) @ up.T).to(h.dtype)

    def unbiased(self, x: Tensor) -> Tensor:
        """Refused: what stands behind a layer is no part of its weight."""
        raise ModelError(
            "this model computes with the layer's weight, behind which no adapter can stand",
            place=self.own.name,
            remedy="name other layers in method.target_modules",
        )

    @property
    def weight(self) -> StandIn:
        """For modules that look at it."""
        return StandIn(self)


def contracted(cores: Sequence[Tensor], m: int, b: int) -> Tensor:
    """The matrix (m, b) of its cores.

    Example:
        >>> contracted([torch.ones(shape) for shape in core_shapes(4, 2, 1)], 4, 2).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    whole = cores[0].new_ones(1, 1)
    for core in cores:
        whole = (whole @ core.reshape(whole.shape[1], -1)).reshape(-1, core.shape[1])
    return whole.reshape(m, b)
