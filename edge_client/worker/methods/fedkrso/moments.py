# SPDX-License-Identifier: Apache-2.0
"""What of Adam goes on from one interval of FedKRSO to the next: nothing, the round's own moments, or the federation's
second ones.

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

`averaged`: the columns of V are the same coordinates on every node that uses the same seed, so nodes can average them.
What is sent is the root, s = sqrt(v), which needs half of v's range in bits, and of it the change, as of every entry of
a state. Adam then begins with M = 0 and with the published s as if that were J gradients, an interval's worth: v_0 = (1
- beta2**J) s**2, and after t steps

    v_t / (1 - beta2**(J + t)) = [beta2**t (1 - beta2**J) s**2 + (1 - beta2) sum of beta2**(t - i) g_i**2] / (1 -
    beta2**(J + t)),

whose weights add up to one: a mean of what all knew and of what this node sees, half and half at the interval's end. M
has seen t gradients only, and is divided by 1 - beta1**t. Where s is zero though the row has others (a column that no
node has trained yet), it is taken as their mean: of its own subspace, or, where that has not been used yet, of all that
have (under random P they have the same expectation). Roots below Adam's epsilon (1e-8) are the finest that a state
tells apart (2**-28), so nothing is lost by rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.model.layer import SubspaceLinear
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import VALUE_BITS
from fedcore.round.training import SECOND, SubspaceTraining

__all__ = ["Moments", "moments_of", "transported"]

_LARGEST = 2.0**VALUE_BITS
_Layers = Mapping[str, SubspaceLinear]


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


def moments_of(training: SubspaceTraining, layers: _Layers, state: PublishedState) -> Moments:
    """The choice that a plan makes.

    Args:
        training: Of the round.
        layers: By name.
        state: What the round begins with.
    """
    if training.moments == "carried":
        return _Carried(layers)
    if training.moments == "averaged":
        return _Averaged(layers, state, training.interval_steps)
    return _Reset(layers)


def transported(first: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A first moment (m, r) of the rows of `old` (r, n) in the coordinates of the rows of `new` (r', n), which have the
    same scale.

    Rows of `old` are nearly orthogonal; M (P P^T)^-1 P is taken with their squared lengths alone (n of rows of signs).
    """
    return (first / old.square().sum(dim=1)) @ (old @ new.T)


def _factor(layer: SubspaceLinear) -> torch.nn.Parameter:
    assert layer.factor is not None, "a subspace is selected"
    return layer.factor


class _Reset:
    """Nothing goes on."""

    def __init__(self, layers: _Layers) -> None:
        self._layers = layers

    def begin(self, subspace: int, learning_rate: float) -> torch.optim.Adam:
        """A new Adam for the factors."""
        return torch.optim.Adam([_factor(layer) for layer in self._layers.values()], lr=learning_rate)

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


class _Carried(_Reset):
    """The moments of each subspace that the round used, and which of them are the newest."""

    _PARTS = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, layers: _Layers) -> None:
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
            factor, held = _factor(layer), self._held[source][name]
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
        self._held[subspace] = {name: dict(adam.state[_factor(layer)]) for name, layer in self._layers.items()}
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


class _PriorAdam(torch.optim.Adam):
    """Adam whose second moments have seen a number of gradients more than its first ones.

    The library has one counter for both; here it is that of the second, and the rate makes up for the first. Without
    any that is Adam."""

    def __init__(self, factors: list[torch.nn.Parameter], learning_rate: float, prior: int) -> None:
        super().__init__(factors, lr=learning_rate)
        self._prior, self._steps = prior, 0

    def step(self, closure: Any = None) -> Any:
        """One optimiser step."""
        self._steps += 1
        group = self.param_groups[0]
        learning_rate, beta = group["lr"], group["betas"][0]
        if self._prior:
            group["lr"] = learning_rate * (1 - beta ** (self._prior + self._steps)) / (1 - beta**self._steps)
        loss = super().step(closure)
        group["lr"] = learning_rate
        return loss


class _Averaged(_Reset):
    """Roots of second moments: published, and this node's own of the round.

    Args:
        layers: By name.
        state: With the published roots.
        interval_steps: J, how many gradients a root stands for.
    """

    def __init__(self, layers: _Layers, state: PublishedState, interval_steps: int) -> None:
        super().__init__(layers)
        self._state, self._interval_steps = state, interval_steps
        self._own: dict[int, dict[str, Tensor]] = {}

    def begin(self, subspace: int, learning_rate: float) -> torch.optim.Adam:
        """One that begins with the roots of this subspace, or of those that were used; with nothing in a generation's
        first interval."""
        roots = {name: self._known(subspace, name) for name in self._layers}
        prior = self._interval_steps if any(bool(root.any()) for root in roots.values()) else 0
        adam = _PriorAdam([_factor(layer) for layer in self._layers.values()], learning_rate, prior)
        if prior:
            share = 1 - adam.param_groups[0]["betas"][1] ** prior
            for name, layer in self._layers.items():
                factor = _factor(layer)
                second = roots[name][:, : factor.shape[1]].square().mul_(share)
                adam.state[factor] = {
                    "step": torch.tensor(float(prior)),
                    "exp_avg": torch.zeros_like(factor),
                    "exp_avg_sq": second.contiguous(),
                }
        return adam

    def finish(self, subspace: int, adam: torch.optim.Adam) -> None:
        """The roots, corrected for the gradients that are in them; columns that did not train stay as they were."""
        beta, own = adam.param_groups[0]["betas"][1], {}
        for name, layer in self._layers.items():
            factor = _factor(layer)
            found = adam.state[factor]
            own[name] = self._root(subspace, name)
            seen = 1 - beta ** float(found["step"])
            own[name][:, : factor.shape[1]] = (found["exp_avg_sq"] / seen).sqrt_().clamp_(max=_LARGEST)
        self._own[subspace] = own

    def kept(self, subspace: int) -> Iterator[tuple[str, Tensor]]:
        """The roots of this node's second moments, for the disk."""
        for name, root in self._own[subspace].items():
            yield f"{name}{SECOND}", root

    def restore(self, subspace: int, read: Callable[[str], Tensor]) -> None:
        """Take back the roots of this node's second moments."""
        self._own[subspace] = {
            name: read(f"{name}{SECOND}").to(layer.base.device) for name, layer in self._layers.items()
        }

    def changes(self, subspaces: tuple[int, ...], rank: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The roots less what was published."""
        for name in self._layers:
            parts = [(self._own[k][name] - self._published(k, name))[:, :rank] for k in subspaces]
            yield f"{name}{SECOND}", torch.cat(parts, dim=1).clamp_(-_LARGEST, _LARGEST).cpu().numpy()

    def _known(self, subspace: int, name: str) -> Tensor:
        """Roots to begin with: none below zero, and where there is none the mean of the row's others."""
        root = self._root(subspace, name).clamp_(min=0.0)
        root = torch.where(root > 0, root, _mean_of_positive(root))
        if bool(root.any()):
            return root
        pool = range(len(self._state.seeds))
        return _mean_of_positive(torch.cat([self._root(k, name) for k in pool], dim=1)).expand_as(root)

    def _root(self, subspace: int, name: str) -> Tensor:
        """The newest of a subspace that this node knows; its own to change."""
        own = self._own.get(subspace)
        return self._published(subspace, name) if own is None else own[name].clone()

    def _published(self, subspace: int, name: str) -> Tensor:
        part, rank = self._state.entries[f"{name}{SECOND}"], self._state.rank
        columns = part.q[:, subspace * rank : (subspace + 1) * rank].astype(np.float32)
        root = np.ldexp(columns, part.exponent.astype(np.int32)[:, None])
        return torch.from_numpy(root).to(self._layers[name].base.device)


def _mean_of_positive(root: Tensor) -> Tensor:
    """By row (m, 1); zero where there is none."""
    return root.clamp(min=0.0).sum(dim=1, keepdim=True) / (root > 0).sum(dim=1, keepdim=True).clamp(min=1)
