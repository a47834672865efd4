# SPDX-License-Identifier: Apache-2.0
"""Server half of split learning (Gupta and Raskar, arXiv 1810.06060; Vepakomma et al., arXiv 1812.00564), with a front
that stays as it is: nodes run the model's first blocks and send what comes out of them, and the coordinator trains the
rest on it. No gradient goes down, so a round costs one transfer up, whatever the steps.

What it makes of a round's activations is no sum but training, in a worker process (`Training.work`), and comes back as
one update of the back: from there on a round is like any other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcore.config.channel import LARGEST_ERROR
from fedcore.config.reading import parse_size
from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings, exact_mean, require_within
from fedcore.round.plan import Plan
from fedcore.round.training import SplitTraining

if TYPE_CHECKING:
    from fedcore.model.state import ExactState
    from fedcore.model.update import WeightedUpdate

__all__ = ["Split", "SplitSettings"]

_LEAST_MEMORY = 2**28


class SplitSettings(
    MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="name", tag="split"
):
    """`name = "split"`: `steps`, `batch_size` and learning rates are those of the coordinator's training; `bits` are of
    activations."""

    front: int = 2
    """Blocks that a node computes."""
    tokens: int = 16_384
    """Whose activations a node sends in a round, at most. A node with more goes on in the next round where it left
    off."""
    noise: float = 0.0
    """Added to activations anew in each of the coordinator's steps: its mean square in units of a token's, as an error
    of `[channel]`."""
    work_memory: str = "2 GiB"
    """Of the coordinator's worker process."""

    def __post_init__(self) -> None:
        MethodSettings.__post_init__(self)
        require_within(self, front=4096, tokens=2**24)
        if not 0 <= self.noise <= LARGEST_ERROR:
            raise ConfigError(f"noise is {self.noise}, it must be 0 to {LARGEST_ERROR:g}", place="method.noise")
        if self.work_memory_bytes < _LEAST_MEMORY:
            words = f"{self.work_memory} is less than the libraries take"
            raise ConfigError(words, place="method.work_memory", remedy="1 GiB, or more for a large model")

    @property
    def work_memory_bytes(self) -> int:
        """The same, as a number."""
        return parse_size(self.work_memory, place="method.work_memory")

    @property
    def needs_head(self) -> str:
        """The labels of a language model are the text."""
        return "split sends the targets of its texts, and those of a language model are the texts themselves"

    @property
    def not_by_coordinate(self) -> str:
        """Activations are of each node's own texts."""
        return "an update has activations, each of a text that no other node has"

    def described(self) -> str:
        """For a person, in short."""
        return (
            f"{self.name}, {self.front} blocks on nodes, {self.tokens:,} tokens at {self.bits} bits, "
            f"{self.steps} steps at the coordinator"
        )


class Split:
    """What the coordinator's worker made of a round's activations."""

    def __init__(self, settings: SplitSettings) -> None:
        self._settings = settings

    def training(self, server_round: int, run_seed: int) -> SplitTraining:
        """What nodes send, and how the back trains."""
        settings, common = self._settings, self._settings.common(server_round, 0, run_seed)
        # What a node leaves on its disk is once of all of its texts, in as many pieces as there are.
        back, common["intervals"] = common["intervals"], 1
        return SplitTraining(
            front=settings.front, tokens=settings.tokens, noise=settings.noise, back_intervals=back, **common
        )

    def aggregate(self, state: ExactState, plan: Plan, updates: Iterable[WeightedUpdate]) -> ExactState:
        """The state plus the back's changes, of an update as `SplitTraining.worked` has it."""
        return exact_mean(state, plan, updates)
