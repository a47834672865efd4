# SPDX-License-Identifier: Apache-2.0
"""What the owner lets a node's server do (`[serve]` in the node file)."""

from __future__ import annotations

from typing import Literal

import msgspec

from fedcore.config.reading import parse_size
from fedcore.config.sections import PathText
from fedcore.errors import BudgetError, ConfigError

__all__ = ["DEFAULT_PORT", "ServeSection", "training_bytes"]

DEFAULT_PORT = 8480


class ServeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[serve]`: how `fedkrso client serve` answers, and how it shares the node's memory budget with training."""

    host: str = "127.0.0.1"
    """Where it listens; an address that others can reach needs `token_file`."""
    port: int = DEFAULT_PORT
    """0 takes a free one."""
    token_file: PathText | None = None
    """Tokens that let clients in, one a line."""
    while_training: Literal["pause", "go_on"] = "pause"
    """`pause`: training and serving take turns with the whole budget, and training goes first. `go_on`: serving has
    `memory_budget` for itself, training the rest, and both may work at once."""
    memory_budget: str = ""
    """With `go_on`: of the node's budget, what the server and its worker may use; a size, such as `600 MiB`."""
    grace_seconds: float = 20.0
    """With `pause`: how long an answer that is being given may take to its end when a round begins."""
    most_waiting: int = 8
    """Requests that wait for their turn; one more is refused."""
    max_tokens: int = 512
    """Of an answer, where the client names no number."""
    max_context: int = 0
    """Tokens of question and answer together at most; 0: as many as the model and the memory allow."""
    property_order: Literal["data", "schema"] = "data"
    """Structured answers: an object's properties come in the order in which this node's own rows have them, where they
    agree on one; or always in the schema's."""
    threads: int = 0
    """Processor threads; 0: as the node's."""

    def __post_init__(self) -> None:
        limits = {
            "port": (0, 65535),
            "grace_seconds": (0, 3600),
            "most_waiting": (0, 1000),
            "max_tokens": (1, 2**20),
            "max_context": (0, 2**24),
            "threads": (0, 1024),
        }
        for key, (least, most) in limits.items():
            if not least <= getattr(self, key) <= most:
                raise ConfigError(f"{getattr(self, key)} is outside {least} to {most}", place=f"serve.{key}")
        if (self.while_training == "go_on") != bool(self.memory_budget):
            raise ConfigError(
                'while_training = "go_on" and memory_budget belong together',
                place="serve.memory_budget",
                remedy='write memory_budget = "600 MiB" with go_on, and leave it out with pause',
            )
        if self.memory_budget:
            parse_size(self.memory_budget, place="serve.memory_budget")

    @property
    def share_bytes(self) -> int:
        """What is set aside for serving; 0 where it takes turns with training."""
        return parse_size(self.memory_budget, place="serve.memory_budget") if self.memory_budget else 0


def training_bytes(budget_bytes: int, serve: ServeSection) -> int:
    """What of a node's budget is left for the agent and its worker.

    Raises:
        BudgetError: Nothing.

    Example:
        >>> training_bytes(900 * 2**20, ServeSection(while_training="go_on", memory_budget="400 MiB")) // 2**20
        500
    """
    left = budget_bytes - serve.share_bytes
    if left <= 0:
        raise BudgetError(
            f"serving has {serve.share_bytes / 2**20:,.0f} MiB of a budget of {budget_bytes / 2**20:,.0f} MiB:"
            " nothing is left to train with",
            place="serve.memory_budget",
            remedy="raise memory_budget, or lower this one",
        )
    return left
