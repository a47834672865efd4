# SPDX-License-Identifier: Apache-2.0
"""Second moments of the federation, which FedKRSO's Adam begins with: roots that nodes average and the state holds.

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
tells apart (2**-28), so nothing is lost by rounding.

`rows`: of s only its root mean square over a row's K r columns, which all have the same expectation under random P: one
number for each row of a weight, a K r-th of the bytes. It is the same for all seeds, so it is published and known for
all as soon as one round is over; until then a node goes on from its own last interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.methods.fedkrso.moments import Carried, Layers, Moments, Reset, factor_of
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import VALUE_BITS
from fedcore.round.training import SECOND, SubspaceTraining

__all__ = ["Averaged", "ByRow", "moments_of"]

_LARGEST = 2.0**VALUE_BITS


def moments_of(training: SubspaceTraining, layers: Layers, state: PublishedState) -> Moments:
    """The choice that a plan makes.

    Args:
        training: Of the round.
        layers: By name.
        state: What the round begins with.
    """
    if training.moments == "carried":
        return Carried(layers)
    if training.moments == "averaged":
        return Averaged(layers, state, training.interval_steps)
    if training.moments == "rows":
        return ByRow(layers, state, training.interval_steps)
    return Reset(layers)


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


def _begun(layers: Layers, roots: Mapping[str, Tensor], learning_rate: float, prior: int) -> _PriorAdam:
    """An Adam whose second moments begin with roots (m, r or more, or 1 for all), as if those were `prior` gradients;
    with nothing where no root is known."""
    prior = prior if any(bool(root.any()) for root in roots.values()) else 0
    adam = _PriorAdam([factor_of(layer) for layer in layers.values()], learning_rate, prior)
    if prior:
        share = 1 - adam.param_groups[0]["betas"][1] ** prior
        for name, layer in layers.items():
            factor = factor_of(layer)
            second = roots[name][:, : factor.shape[1]].square().mul_(share)
            adam.state[factor] = {
                "step": torch.tensor(float(prior)),
                "exp_avg": torch.zeros_like(factor),
                "exp_avg_sq": second.expand_as(factor).contiguous(),
            }
    return adam


class Averaged(Reset):
    """Roots of second moments: published, and this node's own of the round.

    Args:
        layers: By name.
        state: With the published roots.
        interval_steps: J, how many gradients a root stands for.
    """

    def __init__(self, layers: Layers, state: PublishedState, interval_steps: int) -> None:
        super().__init__(layers)
        self._state, self._interval_steps = state, interval_steps
        self._own: dict[int, dict[str, Tensor]] = {}

    def begin(self, subspace: int, learning_rate: float) -> torch.optim.Adam:
        """One that begins with the roots of this subspace, or of those that were used; with nothing in a generation's
        first interval."""
        roots = {name: self._known(subspace, name) for name in self._layers}
        return _begun(self._layers, roots, learning_rate, self._interval_steps)

    def finish(self, subspace: int, adam: torch.optim.Adam) -> None:
        """The roots, corrected for the gradients that are in them; columns that did not train stay as they were."""
        beta, own = adam.param_groups[0]["betas"][1], {}
        for name, layer in self._layers.items():
            factor = factor_of(layer)
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


class ByRow(Reset):
    """Root mean squares of rows: published, and this node's own of the round.

    Args:
        layers: By name.
        state: With the published ones.
        interval_steps: J, how many gradients a root stands for.
    """

    def __init__(self, layers: Layers, state: PublishedState, interval_steps: int) -> None:
        super().__init__(layers)
        self._interval_steps = interval_steps
        self._published = {
            name: torch.from_numpy(state.entries[f"{name}{SECOND}"].values().astype(np.float32).T).to(layer.base.device)
            for name, layer in layers.items()
        }
        self._squares: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._intervals = 0

    def begin(self, subspace: int, learning_rate: float) -> torch.optim.Adam:
        """One that begins with the published roots; before the first round is over with the last interval's."""
        known = any(bool(root.any()) for root in self._published.values())
        roots = self._published if known else self._last
        filled = {name: _filled(root) for name, root in roots.items()}
        return _begun(self._layers, filled, learning_rate, self._interval_steps)

    def finish(self, subspace: int, adam: torch.optim.Adam) -> None:
        """Root mean squares over the columns that trained, corrected for the gradients that are in them."""
        beta, last = adam.param_groups[0]["betas"][1], {}
        for name, layer in self._layers.items():
            found = adam.state[factor_of(layer)]
            mean = found["exp_avg_sq"].mean(dim=1, keepdim=True) / (1 - beta ** float(found["step"]))
            last[name] = mean.sqrt_().clamp_(max=_LARGEST)
        self._take(last)

    def kept(self, subspace: int) -> Iterator[tuple[str, Tensor]]:
        """The last interval's, for the disk."""
        for name, root in self._last.items():
            yield f"{name}{SECOND}", root

    def restore(self, subspace: int, read: Callable[[str], Tensor]) -> None:
        """Take back an interval's."""
        self._take({name: read(f"{name}{SECOND}").to(layer.base.device) for name, layer in self._layers.items()})

    def changes(self, subspaces: tuple[int, ...], rank: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Root mean squares over the round's intervals less what was published, (1, m)."""
        for name, squares in self._squares.items():
            root = (squares / self._intervals).sqrt_()
            yield f"{name}{SECOND}", (root - self._published[name]).clamp_(-_LARGEST, _LARGEST).T.cpu().numpy()

    def _take(self, last: dict[str, Tensor]) -> None:
        for name, root in last.items():
            before = self._squares.get(name)
            self._squares[name] = root.square() if before is None else before + root.square()
        self._last, self._intervals = last, self._intervals + 1


def _filled(root: Tensor) -> Tensor:
    """Rows (m, 1): none below zero, and where there is none the mean of the layer's others."""
    root = root.clamp(min=0.0)
    return torch.where(root > 0, root, _mean_of_positive(root.T))


def _mean_of_positive(root: Tensor) -> Tensor:
    """By row (m, 1); zero where there is none."""
    return root.clamp(min=0.0).sum(dim=1, keepdim=True) / (root > 0).sum(dim=1, keepdim=True).clamp(min=1)
