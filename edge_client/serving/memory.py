# SPDX-License-Identifier: Apache-2.0
"""What memory the serving worker may have: the node's whole budget by turns with training, or a share of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_client.memory.monitor import Reading
from edge_client.memory.probes import available_bytes, own_rss_bytes, process_bytes, total_bytes
from edge_client.memory.sharing import Sharing, agent_bytes
from edge_client.owner.serving import ServeSection

__all__ = ["AGENT_BYTES", "RESERVE_BYTES", "SERVER_BYTES", "ServingMemory"]

# An agent may start at any time; it stays below this.
AGENT_BYTES = 40_000_000
# This process, before it is there to be measured: 37 MB were.
SERVER_BYTES = 40_000_000
# This process may still grow by this much.
RESERVE_BYTES = 12_000_000


@dataclass(frozen=True)
class ServingMemory:
    """The worker's part of a budget.

    Attributes:
        budget_bytes: The node's whole budget, or that of a model without a node.
        section: How it is shared.
        node_folder: Of the node; None where nothing is trained.
        sharing: Our hold on it; None where there is nobody to share with, or serving has a share of its own.
    """

    budget_bytes: int
    section: ServeSection
    node_folder: Path | None
    sharing: Sharing | None

    @classmethod
    def of(cls, budget_bytes: int, section: ServeSection, node_folder: Path | None) -> ServingMemory:
        """By the section's words."""
        turns = node_folder is not None and section.while_training == "pause"
        sharing = Sharing(node_folder, "serving") if node_folder is not None and turns else None
        return cls(budget_bytes, section, node_folder, sharing)

    @property
    def limit_bytes(self) -> int:
        """For this process and its worker, and with `pause` for the agent too."""
        return self.section.share_bytes or self.budget_bytes

    @property
    def trains_now(self) -> bool:
        """Whether training needs the memory that serving would have."""
        return self.sharing is not None and self.sharing.other_wants()

    def take(self) -> bool:
        """Ask for the memory, and have it if nobody else has."""
        return self.sharing is None or self.sharing.take()

    def leave(self) -> None:
        """Neither have nor ask for it any more."""
        if self.sharing is not None:
            self.sharing.leave()

    def worker_bytes(self) -> int:
        """What the worker may use now."""
        return max(1, self.limit_bytes - self._others_bytes() - RESERVE_BYTES)

    def reading(self, at_seconds: float, worker_bytes: int | None) -> Reading:
        """What all that share this memory use."""
        return Reading(
            at_seconds=at_seconds,
            agent_bytes=self._own_bytes() + self._present_agent_bytes(),
            worker_bytes=worker_bytes,
            device_available_bytes=available_bytes(),
            device_total_bytes=total_bytes(),
        )

    def _others_bytes(self) -> int:
        agent = 0 if self.sharing is None else max(AGENT_BYTES, self._present_agent_bytes())
        return self._own_bytes() + agent

    def _present_agent_bytes(self) -> int:
        return agent_bytes(self.node_folder) if self.sharing is not None and self.node_folder is not None else 0

    def _own_bytes(self) -> int:
        return process_bytes(os.getpid()) or own_rss_bytes()
