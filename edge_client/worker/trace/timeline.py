# SPDX-License-Identifier: Apache-2.0
"""What a step makes and lets go of, in order; and the same for more blocks than were traced.

Blocks that are alike make and let go of the same, one after the other: forward from the first, backward from the last.
A step through thirty of them is that through four, with the events of one between two others there twenty-six times
more. So the timeline is what is continued, not its peak: where the peak lies among so many blocks then shows by
itself. That the blocks are alike is seen by their events: two periods in a row must be equal, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["PHASES", "Event", "Peak", "Timeline"]

PHASES = ("forward", "loss", "backward")

Event = tuple[int, int]
"""The phase that made a storage, by its place in `PHASES`, and its bytes; less than 0 where it goes."""


@dataclass(frozen=True)
class Peak:
    """Live bytes at the peak of a step, by the phase that made them."""

    forward_bytes: int
    loss_bytes: int
    backward_bytes: int

    @property
    def total_bytes(self) -> int:
        """Live bytes of all phases together: the peak."""
        return self.forward_bytes + self.loss_bytes + self.backward_bytes


@dataclass
class Timeline:
    """Events of a step.

    Attributes:
        events: In order.
        forward: Where each block begins, by its index: how many events were before it.
        backward: The same for its backward pass; none where nothing goes back through it.
        awaited: Blocks whose backward pass was to come.

    Example:
        Four blocks that keep 10 bytes each, with 4 more for a moment in each direction, as if they were six:

        >>> block, back = [(0, 10), (0, 4), (0, -4)], [(2, 4), (2, -4), (0, -10)]
        >>> events = [(0, 7), *block * 4, *back * 4, (0, -7)]
        >>> begins, returns = {i: 1 + 3 * i for i in range(4)}, {3 - i: 13 + 3 * i for i in range(4)}
        >>> step = Timeline(events, begins, returns, {0, 1, 2, 3})
        >>> step.peak().forward_bytes, step.continued(lead=0, period=1, copies=2).peak().forward_bytes
        (51, 71)
    """

    events: list[Event] = field(default_factory=list)
    forward: dict[int, int] = field(default_factory=dict)
    backward: dict[int, int] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)

    def peak(self) -> Peak:
        """The most that is alive at a time, the first time that it is."""
        if not self.events:
            return Peak(0, 0, 0)
        made = np.array(self.events, np.int64)
        live = np.cumsum(made[:, 1])
        at = int(np.argmax(live))
        if live[at] <= 0:
            return Peak(0, 0, 0)
        phases, sizes = made[: at + 1, 0], made[: at + 1, 1]
        return Peak(*(int(sizes[phases == phase].sum()) for phase in range(len(PHASES))))

    def continued(self, *, lead: int, period: int, copies: int, seen: bool = False) -> Timeline | None:
        """The timeline with more blocks; None where these are not seen to repeat.

        Args:
            lead: Blocks at the beginning that are not like later ones.
            period: After so many blocks the same comes again; at least `lead + 2 * period + 2` were traced.
            copies: Periods to add.
            seen: That they repeat is known from another pass of the same kind; then a period less will do.
        """
        last, more = len(self.forward) - 1, 1 if seen else 2
        if last < lead + more * period + 1 or set(self.forward) != set(range(last + 1)):
            return None
        # Up to where the last block begins: how it ends is another matter.
        ahead = self._between(self.forward, [last - more * period, last - period, last])
        if ahead is None:
            return None
        begin = self.forward[last]
        if not self.awaited and not self.backward:
            return Timeline(self.events[:begin] + ahead * copies + self.events[begin:])
        first = max(lead - 1, 0)
        back = self._between(self.backward, [first + more * period, first + period, first])
        if back is None or set(self.backward) != set(range(last + 1)):
            return None
        end = self.backward[first]
        middle = self.events[begin:end]
        return Timeline(self.events[:begin] + ahead * copies + middle + back * copies + self.events[end:])

    def _between(self, places: Mapping[int, int], marks: Sequence[int]) -> list[Event] | None:
        """The events between the last two marks, where those between the first two, if any, are the same."""
        if any(mark not in places for mark in marks):
            return None
        one, two, three = (places[mark] for mark in marks)
        again = self.events[two:three]
        return again if one == two or self.events[one:two] == again else None
