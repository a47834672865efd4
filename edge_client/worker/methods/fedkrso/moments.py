# SPDX-License-Identifier: Apache-2.0
"""What of Adam goes on from one interval of FedKRSO to the next: nothing, the round's own moments, or the federation's
second ones, of every number or of every row.

An interval trains a factor B (m, r) in the coordinates of its projection P (r, n). Its gradient is G P^T, where G (m,
n) is the whole weight's. So moments belong to a subspace: M is a mean of G P^T, V one of (G P^T)**2.

`reset`: each interval's Adam begins with nothing, the paper's rule.

`carried`: it begins with what the round's last interval left. The step counter t goes on as well: it says how many
gradients are in the moments, and bias correction divides by 1 - beta**t; begun again at 1 it would divide moments of
full size by 0.1 and 0.001.

- M goes into the new subspace. The mean of G that explains M with the least is M (P P^T)^-1 P, and P P^T is close to n
  / r times one for all projections with E[P^T P] = I; so the new one is r / n M P_old P_new^T. In the same subspace
  that is M again. M P_old P_new^T alone would be right on average too, but with a random error of sqrt(n / r) times its
  size, as steps of that size.
- V stays as it is. Squares cannot be transported: of G P^T one sees r mixtures of a row of G, and for another P they
  are other mixtures. Yet under random P all r have the same expectation, |g|^2 / r for a row g. Its mean over r is what
  carries, and that is in V whichever way the columns are turned.
- An interval that comes back to a subspace takes up the moments, and the counter, that it left there.

`averaged`, `rows`: the federation's second moments, as roots that are published: `roots.py` beside this file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.model.layer import SubspaceLinear

__all__ = ["Carried", "Layers", "Moments", "Reset", "factor_of", "transported"]

Layers = Mapping[str, SubspaceLinear]


class Moments(Protocol):
    """One choice, through one round."""

    def begin(self, subspace: int, learning_rate: float) -> torch.optim.Adam:
        """The optimiser of the layers' factors, which are selected in this subspace and zero."""
        ...

    def finish(self, subspace: int, adam: torch.optim.Adam) -> None:
        """Take from an interval's optimiser what goes on."""
        ...

    def kept(self, subspace: int) -> Iterator[tuple[str, Tensor]]:
        """What a finished interval must leave on disk for it, by name."""
        ...

    def restore(self, subspace: int, read: Callable[[str], Tensor]) -> None:
        """Take back what `kept` gave; intervals come in order."""
        ...

    def changes(self, subspaces: tuple[int, ...], rank: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """What the update says of moments, of these subspaces and the first columns of each."""
        ...


def transported(first: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A first moment (m, r) of the rows of `old` (r, n) in the coordinates of the rows of `new` (r', n), which have the
    same scale.

    Rows of `old` are nearly orthogonal; M (P P^T)^-1 P is taken with their squared lengths alone (n of rows of signs).
    """
    return (first / old.square().sum(dim=1)) @ (old @ new.T)


def factor_of(layer: SubspaceLinear) -> torch.nn.Parameter:
    """A layer's factor in the subspace that is selected."""
    assert layer.factor is not None, "a subspace is selected"
    return layer.factor


class Reset:
    """Nothing goes on."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers

    def begin(self, subspace: int, learning_rate: float) -> torch.optim.Adam:
        """A new Adam for the factors."""
        return torch.optim.Adam([factor_of(layer) for layer in self._layers.values()], lr=learning_rate)

    def finish(self, subspace: int, adam: torch.optim.Adam) -> None:
        """Nothing is left of an interval's Adam."""

    def kept(self, subspace: int) -> Iterator[tuple[str, Tensor]]:
        """Nothing of Adam is kept on disk."""
        yield from ()

    def restore(self, subspace: int, read: Callable[[str], Tensor]) -> None:
        """Nothing of Adam was kept."""

    def changes(self, subspaces: tuple[int, ...], rank: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Nothing of Adam travels."""
        yield from ()


class Carried(Reset):
    """The moments of each subspace that the round used, and which of them are the newest."""

    _PARTS = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers)
        self._held: dict[int, dict[str, dict[str, Tensor]]] = {}
        self._newest: int | None = None

    def begin(self, subspace: int, learning_rate: float) -> torch.optim.Adam:
        """One that goes on."""
        adam = super().begin(subspace, learning_rate)
        source = subspace if subspace in self._held else self._newest
        if source is None:
            return adam
        for name, layer in self._layers.items():
            factor, held = factor_of(layer), self._held[source][name]
            width, first = factor.shape[1], held["exp_avg"]
            if source != subspace or first.shape[1] != width:
                first = transported(
                    first, layer.subspace_rows(source, first.shape[1]), layer.subspace_rows(subspace, width)
                )
            second = _with_columns(held["exp_avg_sq"], width)
            adam.state[factor] = {"step": held["step"].clone(), "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
        return adam

    def finish(self, subspace: int, adam: torch.optim.Adam) -> None:
        """Keep the interval's whole Adam for the round's next ones."""
        self._held[subspace] = {name: dict(adam.state[factor_of(layer)]) for name, layer in self._layers.items()}
        self._newest = subspace

    def kept(self, subspace: int) -> Iterator[tuple[str, Tensor]]:
        """The whole Adam of an interval, for the disk."""
        for name, held in self._held[subspace].items():
            for part in self._PARTS:
                yield f"{name}.{part}", held[part]

    def restore(self, subspace: int, read: Callable[[str], Tensor]) -> None:
        """All of it; the counter stays on the processor, where Adam has it."""
        self._held[subspace] = {
            name: {
                part: read(f"{name}.{part}").to("cpu" if part == "step" else layer.base.device) for part in self._PARTS
            }
            for name, layer in self._layers.items()
        }
        self._newest = subspace


def _with_columns(second: Tensor, width: int) -> Tensor:
    """A second moment with other columns: the first of them, or the row's mean for those that there were not.

    A worker that began again in the middle of a round may have had to take a smaller rank.
    """
    if second.shape[1] >= width:
        return second[:, :width]
    return torch.cat([second, second.mean(dim=1, keepdim=True).expand(-1, width - second.shape[1])], dim=1)
