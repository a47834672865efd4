# SPDX-License-Identifier: Apache-2.0
"""Server half of FedBPT (Sun et al., arXiv 2310.01467): a prompt is found without a gradient. It is A z, A random and
fixed, z of a few hundred numbers; each node searches for z by CMA-ES with its own texts' loss, and the coordinator
takes one step of a CMA-ES whose population is where the nodes' searches ended.

With sigma_(i,t) the step sizes of node i's generations, N nodes, and mu the better half of a node's population, the
coordinator's search has the step size

    sigma = sqrt(sum over i and t of sigma_(i,t)^2 / N / mu)      how far a node's mean may have come

before its step, and nodes begin the next round with theirs times what became of it: never longer than before, and not
below 0.5 (or what the run began with, if that is less).

Nodes need the covariance too, as in the authors' code. Its decomposition differs from machine to machine, so the
coordinator publishes the root that it computed, rounded as every state is; the covariance itself and the paths of its
search stay with it (`ExactState.tables`). Nodes' names order the population."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedcore.errors import ConfigError
from fedcore.fields.types import Bits
from fedcore.methods.interface import MethodSettings, require_within
from fedcore.round.plan import Plan
from fedcore.round.training import EvolutionTraining
from fedcore.round.training.evolution import FITNESS, MEAN, ROOT, SIGMA, SIGMAS

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate
    from fedcore.subspaces.evolution import Search

__all__ = ["FedBPT", "FedBPTSettings"]

_LEAST_SIGMA = 0.5
_LARGEST = 128.0
"""Of a number of the state."""


class FedBPTSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="fedbpt"
):
    """`name = "fedbpt"`."""

    intrinsic_dim: int = 500
    """Numbers of z, d."""
    num_virtual_tokens: int = 50
    """Of the prompt, before each text."""
    population: int = 5
    """Candidates of a node's generation: so many passes over a step's batch."""
    sigma: float = 1.0
    """The first step size: with one, a candidate moves the prompt about as far as word embeddings are long."""
    interval_steps: int = 2
    steps: int = 8
    """Generations of a node's search in a round."""
    batch_size: int = 64
    """Rows that a generation's candidates are compared on."""
    bits: Bits = 16

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, intrinsic_dim=4096, num_virtual_tokens=4096, population=1024, sigma=100)
        for key in ("intrinsic_dim", "population"):
            if getattr(self, key) < 2:
                raise ConfigError(f"{key} is {getattr(self, key)}, it must be 2 or more", place=f"method.{key}")

    @property
    def virtual_tokens(self) -> int:
        """Of the prompt."""
        return self.num_virtual_tokens

    @property
    def not_by_coordinate(self) -> str:
        """The search ranks them."""
        return "updates are ranked by the losses that they claim"

    @property
    def not_averaged(self) -> str:
        """The search's own numbers are part of it."""
        return "each is a search's mean with its step size and covariance"

    @property
    def not_with_answers(self) -> str:
        """A cache begins without a prompt."""
        return "a prompt has no place in an answer's cache"

    def described(self) -> str:
        """For a person, in short."""
        return (
            f"{self.name}, {self.num_virtual_tokens} tokens, {self.intrinsic_dim} dimensions, {self.steps} generations"
            f" of {self.population}, {self.bits} bits"
        )


class FedBPT:
    """One step of the coordinator's search."""

    def __init__(self, settings: FedBPTSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> EvolutionTraining:
        """The search's sizes, and the round's bounds."""
        settings = self._settings
        return EvolutionTraining(
            intrinsic_dim=settings.intrinsic_dim,
            num_virtual_tokens=settings.num_virtual_tokens,
            population=settings.population,
            sigma=settings.sigma,
            **settings.common(server_round, 0, run_seed),
        )

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The state after the coordinator's search has been told where the nodes' ended."""
        import numpy as np

        from fedcore.numbers.accumulator import FRACTION_BITS
        from fedcore.numbers.symmetric import pack_rows
        from fedcore.subspaces.evolution import Constants

        training = plan.training
        assert isinstance(training, EvolutionTraining)
        said = dict(sorted((update.header.node, _said(update, plan)) for update in updates))
        found = {name: np.array([one[name][0] for one in said.values()]) for name in (MEAN, FITNESS, SIGMAS)}
        d, n, parents = training.intrinsic_dim, len(said), training.population // 2
        start = math.sqrt(max(float(np.square(found[SIGMAS]).sum()), 1e-12) / n / parents)
        search = _search(state, d, start)
        constants = Constants.of(d, n, all_parents=True)
        after = search.tell(search.mean + found[MEAN], found[FITNESS][:, 0], constants)
        last = training.sigma + float(state.sums[SIGMA][0, 0]) * 2.0**-FRACTION_BITS
        sigma = min(last, max(_LEAST_SIGMA, last * after.sigma / start))
        less_one = after.roots[0] - np.eye(d)
        entries = {
            MEAN: after.mean[None],
            SIGMA: np.array([[sigma - training.sigma]]),
            ROOT: pack_rows(d, lambda i: less_one[i, i:]),
        }
        unit = 2.0**FRACTION_BITS
        sums = {
            name: np.rint(np.clip(value, -_LARGEST, _LARGEST) * unit).astype(np.int64)
            for name, value in entries.items()
        }
        tables = {
            "covariance": after.covariance,
            "paths": np.stack([after.step_path, after.covariance_path]),
            "generation": np.array([[float(after.generation)]]),
        }
        return replace(state, version=state.version + 1, sums=state.sums | sums, tables=tables)


def _search(state: ExactState, d: int, sigma: float) -> Search:
    """The coordinator's, as the last round left it, with a step size."""
    import numpy as np

    from fedcore.numbers.accumulator import FRACTION_BITS
    from fedcore.subspaces.evolution import Search

    mean = np.ldexp(state.sums[MEAN][0].astype(np.float64), -FRACTION_BITS)
    if not state.tables:
        return Search.begin(mean, sigma, np.eye(d))
    paths = state.tables["paths"]
    return Search(mean, sigma, state.tables["covariance"], paths[0], paths[1], int(state.tables["generation"][0, 0]))


def _said(update: WeightedUpdate, plan: Plan) -> dict[str, Any]:
    """What a participant says, float64 by entry; where it went as it counts."""
    import numpy as np

    from fedcore.model.update import IndexedUpdate
    from fedcore.numbers.accumulator import FRACTION_BITS

    indexed, out = IndexedUpdate(update, plan), {}
    for name in (MEAN, FITNESS, SIGMAS):
        part = indexed.record(name)[0].part
        units = part.units(slice(0, 1))
        if name == MEAN and update.clip is not None:
            units = update.clip.of(units)
        out[name] = np.ldexp(units.astype(np.float64), -FRACTION_BITS)
    return out
