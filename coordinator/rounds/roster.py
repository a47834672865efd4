# SPDX-License-Identifier: Apache-2.0
"""Who is still waited for, kept up to date event by event: with thousands of nodes each of which says a word, whoever
asks must not go through all of them for every word."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Roster", "some_besides"]


@dataclass
class Roster:
    """The nodes of the open round, or of a run's end; whoever decides about them says what changes.

    Attributes:
        invited: The cohort of the open round.
        waiting: Of them, those that have neither sent an update nor declined.
        others: Nodes online that are not invited and have not declined: who could be asked instead.
        missing: At a run's end, nodes whose last word has not come.

    Example:
        >>> roster = Roster()
        >>> roster.opened(("a", "b"), done={"a"}, declined=set(), online={"a", "b", "c"})
        >>> sorted(roster.waiting), sorted(roster.others)
        (['b'], ['c'])
    """

    invited: frozenset[str] = frozenset()
    waiting: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)

    def opened(self, cohort: Iterable[str], *, done: set[str], declined: set[str], online: set[str]) -> None:
        """A round opens, for the first time or again.

        Args:
            cohort: Who is invited.
            done: Whose updates are in.
            declined: Who will send none.
            online: Who is there.
        """
        self.invited = frozenset(cohort)
        self.waiting = set(self.invited - done - declined)
        self.others = online - declined - self.invited

    def came(self, node: str, *, declined: bool) -> None:
        """A node is there.

        Args:
            node: Who.
            declined: Whether it has declined this round.
        """
        if node not in self.invited and not declined:
            self.others.add(node)

    def answered(self, node: str) -> None:
        """A node of the cohort has sent its update, or declined."""
        self.waiting.discard(node)

    def ending(self, seen: set[str], reported: Mapping[str, tuple[int, str]], version: int) -> None:
        """The run ends, once all have said that they hold its last version.

        Args:
            seen: Who took part.
            reported: What they hold: version and digest.
            version: The last.
        """
        self.missing = {node for node in seen if reported.get(node, (-1, ""))[0] != version}


def some_besides(nodes: Collection[str], excluded: Collection[str]) -> bool:
    """Whether there are nodes besides the excluded ones, which are few.

    Example:
        >>> some_besides({"a", "b"}, {"a"}), some_besides({"a"}, {"a", "c"})
        (True, False)
    """
    return len(nodes) > sum(node in nodes for node in excluded)
