# SPDX-License-Identifier: Apache-2.0
"""Which updates are wanted: in synchronous rounds those of the open round's cohort, in buffered ones those of whoever
was invited to a round that is not too far behind.

Decided when an update is offered, so that nobody sends what does not count, and once more when it is there."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.rounds.machine import RoundMachine
from coordinator.rounds.policy import largest_update
from coordinator.store.ledger import Ledger
from fedcore.fields.manifest import Manifest
from fedcore.round.plan import Plan
from fedcore.round.staleness import Staleness

__all__ = ["Admission", "Wanted", "round_of"]


@dataclass(frozen=True)
class Wanted:
    """An update that counts.

    Attributes:
        plan: By which it was trained.
        into: The round in which it counts.
    """

    plan: Plan
    into: int

    def why_not(self, manifest: Manifest) -> str:
        """Why a file cannot be it; empty where it can."""
        if manifest.size_bytes > largest_update(self.plan) or not 1024 <= manifest.chunk_bytes <= 1_000_000:
            return f"an update of {manifest.size_bytes} bytes is more than the plan can need"
        return ""


class Admission:
    """Says of each update whether it counts, and in which round.

    Args:
        machine: The round machine, to read.
        ledger: Has the plans of earlier rounds.
        staleness: How far updates may be behind.

    Attributes:
        plan: The present one.
        cohort: Its cohort.
    """

    def __init__(self, machine: RoundMachine, ledger: Ledger, staleness: Staleness) -> None:
        self._machine, self._ledger, self._staleness = machine, ledger, staleness
        self._earlier: dict[int, tuple[Plan, frozenset[str]]] = {}
        self.plan: Plan | None = None
        self.cohort: frozenset[str] = frozenset()

    def announced(self, plan: Plan | None) -> None:
        """Another plan is out."""
        if self.plan is not None and plan is not None and self.plan.round < plan.round:
            self._earlier[self.plan.round] = self.plan, self.cohort
        self.plan, self.cohort = plan, frozenset() if plan is None else frozenset(plan.cohort)
        oldest = self.oldest(self._machine.round)
        self._earlier = {number: kept for number, kept in self._earlier.items() if number >= oldest}

    def oldest(self, server_round: int) -> int:
        """The first round whose updates may still count in a round."""
        return server_round - self._staleness.allowed(server_round)

    def wanted(self, node: str, trained_for: int) -> Wanted | str | None:
        """Whether an update counts.

        Args:
            node: Whose it is.
            trained_for: The round whose plan it was trained by.

        Returns:
            Where it counts; or in words, why nowhere; None: not to be said before another round opens.
        """
        machine, plan, over = self._machine, self.plan, f"late: round {trained_for} is over"
        if not machine.is_buffered:
            if plan is None or trained_for != plan.round or machine.phase != "open":
                return over
            return Wanted(plan, plan.round) if node in self.cohort else "not invited to this round"
        if plan is None or machine.phase not in ("open", "waiting"):
            return over
        into = machine.place(node)
        if not into:
            known = f"{over}, and round {machine.round} has an update of this node"
            return None if machine.phase == "waiting" else known
        behind, allowed = into - trained_for, self._staleness.allowed(into)
        if behind > allowed:
            return (
                f"expired: trained for round {trained_for}, it would count in round {into}: {behind} behind, "
                f"where {allowed} may be"
            )
        found = self._announced(trained_for)
        if found is None:
            return f"round {trained_for} is not open"
        return Wanted(found[0], into) if node in found[1] else f"not invited to round {trained_for}"

    def _announced(self, server_round: int) -> tuple[Plan, frozenset[str]] | None:
        """The plan of a round, and its cohort."""
        if self.plan is not None and self.plan.round == server_round:
            return self.plan, self.cohort
        if server_round not in self._earlier and server_round < self._machine.round:
            # An earlier life of the coordinator announced it.
            plan = self._ledger.plan(server_round)
            if plan is not None:
                self._earlier[server_round] = plan, frozenset(plan.cohort)
        return self._earlier.get(server_round)


def round_of(transfer: str) -> int:
    """The round whose update a transfer is of; 0 where its name does not say.

    Example:
        >>> round_of("7-0a1b"), round_of("x")
        (7, 0)
    """
    number = transfer.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < 10 else 0
