# SPDX-License-Identifier: Apache-2.0
"""What a client subscribes to: which filters the broker has granted, and when one that it refused is asked for again.

MQTT 3.1.1 has one word for every refusal, and nats-server says it of a filter that is forbidden and of any filter while
its cluster has no leader. So a refusal without a reason is asked again, and lasts only if nothing was granted for long.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fedcore.transport.backoff import Backoff
from fedcore.transport.base import Denied

__all__ = ["PATIENCE_SECONDS", "Filters"]

PATIENCE_SECONDS: Final = 60.0
"""After so long a filter that was never granted counts as forbidden."""
_FIRST_SECONDS, _LONGEST_SECONDS = 0.5, 15.0
_FAILURE = 128
# What would be the same at the next try: not authorized, filter invalid, and kinds of filters that are not served.
_LASTING = frozenset((135, 143, 158, 161, 162))


@dataclass
class _Refusal:
    since: float
    backoff: Backoff
    again_at: float
    told: bool = False
    """On this link."""
    lasting: bool = False


class Filters:
    """Safe to use from several threads.

    Args:
        jitter: Spreads what many clients ask again.
        patience_seconds: See `PATIENCE_SECONDS`.

    Example:
        >>> filters = Filters(random.Random(0))
        >>> filters.add("plan")
        >>> filters.ask("plan", lambda: 7), filters.answered(7, 128, "no", now=0.0), filters.due(now=0.6)
        (None, Denied(topic_filter='plan', reason='no', lasting=False), ['plan'])
        >>> filters.ask("plan", lambda: 8), filters.answered(8, 1, "granted", now=0.7), filters.granted
        (None, None, True)
    """

    def __init__(self, jitter: random.Random, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._jitter, self._patience_seconds = jitter, patience_seconds
        self._wanted: dict[str, bool] = {}
        self._asked: dict[int, str] = {}
        self._known: set[str] = set()
        """What was granted once, on this link or an earlier one."""
        self._missing: set[str] = set()
        self._refused: dict[str, _Refusal] = {}
        # The answer to a subscription may come before we have its number.
        self._lock = threading.Lock()

    def add(self, topic_filter: str, *, again: bool = True) -> None:
        """Want a filter; `again` as `Transport.subscribe` has it."""
        with self._lock:
            self._wanted[topic_filter] = again
            self._missing.add(topic_filter)

    def remove(self, topic_filter: str) -> None:
        """Want it no more."""
        with self._lock:
            self._wanted.pop(topic_filter, None)
            self._missing.discard(topic_filter)
            self._refused.pop(topic_filter, None)

    def again(self, topic_filter: str) -> bool:
        """Whether its retained messages come once more after a reconnect."""
        return self._wanted.get(topic_filter, True)

    def linked(self) -> Iterable[str]:
        """A new link: every filter is to be asked for on it."""
        with self._lock:
            self._asked.clear()
            self._missing = set(self._wanted)
            for refusal in self._refused.values():
                refusal.told = False
            return list(self._wanted)

    def ask(self, topic_filter: str, subscribe: Callable[[], int | None]) -> None:
        """Ask the broker.

        Args:
            topic_filter: A filter that is wanted.
            subscribe: Sends the request; the number by which its answer is known.
        """
        with self._lock:
            self._asked[subscribe() or 0] = topic_filter
            if (refusal := self._refused.get(topic_filter)) is not None:
                refusal.again_at = float("inf")

    def answered(self, number: int, code: int, words: str, now: float) -> Denied | None:
        """The broker's answer to a request; what is to be told of it.

        Args:
            number: Of the request.
            code: Of the SUBACK; 128 and above refuse.
            words: The same for people.
            now: Seconds of a clock that never goes back.
        """
        with self._lock:
            topic_filter = self._asked.pop(number, None)
            if topic_filter is None or topic_filter not in self._wanted:
                return None
            if code < _FAILURE:
                self._known.add(topic_filter)
                self._missing.discard(topic_filter)
                self._refused.pop(topic_filter, None)
                return None
            return self._refuse(topic_filter, code, words, now)

    @property
    def granted(self) -> bool:
        """Whether the broker has granted all of them on this link."""
        return not self._missing

    def due(self, now: float) -> list[str]:
        """Filters to ask for again."""
        with self._lock:
            return [one for one, refusal in self._refused.items() if refusal.again_at <= now]

    def wait_seconds(self, now: float) -> float | None:
        """Until one is due; None where nothing is refused."""
        with self._lock:
            at = min((refusal.again_at for refusal in self._refused.values()), default=float("inf"))
            return None if at == float("inf") else max(0.0, at - now)

    def _refuse(self, topic_filter: str, code: int, words: str, now: float) -> Denied | None:
        if topic_filter not in self._refused:
            backoff = Backoff(_FIRST_SECONDS, _LONGEST_SECONDS, self._jitter)
            self._refused[topic_filter] = _Refusal(now, backoff, now)
        refusal = self._refused[topic_filter]
        refusal.again_at = float("inf") if code in _LASTING else now + refusal.backoff.next_seconds()
        waited = topic_filter not in self._known and now - refusal.since >= self._patience_seconds
        lasting = code in _LASTING or waited
        told = refusal.told and refusal.lasting == lasting
        refusal.lasting, refusal.told = lasting, True
        return None if told else Denied(topic_filter, words, lasting)
