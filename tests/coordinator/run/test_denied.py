# SPDX-License-Identifier: Apache-2.0
"""A broker that does not let the coordinator hear its nodes: for a while, or for good."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from coordinator.job import SafetySection
from fedcore.errors import BrokerRefused
from fedcore.round.plan import Plan
from fedcore.transport.base import Denied, Message, Sink
from fedcore.transport.memory import MemoryBroker, MemoryTransport
from tests.coordinator.messages.one_round import HONEST, TOPICS, WAIT_SECONDS, Run


class _Refused(Run):
    """A run whose coordinator gets an answer to a subscription as its link begins."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.watch = self._refuse
        self.answer = Denied(TOPICS.status("+"), "Unspecified error", lasting=True)

    def _refuse(self, broker: MemoryBroker) -> None:
        usual, ours, answer = broker.connect, threading.current_thread(), self.answer

        class Transport(MemoryTransport):
            def start(self, sink: Sink, will: Message | None = None) -> None:
                super().start(sink, will)
                sink(answer)

        mine = lambda: usual() if threading.current_thread() is ours else Transport(broker)  # noqa: E731
        broker.connect = mine  # type: ignore[method-assign]

    def _plan(self, plans: queue.Queue[Plan], ended: queue.Queue[object]) -> Plan:  # type: ignore[override]
        if self.answer.lasting:
            error = ended.get(timeout=WAIT_SECONDS)
            assert isinstance(error, Exception)
            raise error
        return Run._plan(plans, ended)


def test_what_is_refused_for_now_is_said_and_what_is_forbidden_ends_a_run_that_can_go_on(tmp_path: Path) -> None:
    run = _Refused(tmp_path)
    with pytest.raises(
        BrokerRefused, match=r"\+/status: the broker does not let us read: Unspecified error .*allow the"
    ):
        run.go({}, SafetySection(), idle=("good-1", "good-2"))
    run.answer = Denied(TOPICS.up("+", "#"), "Unspecified error", lasting=False)
    assert set(run.go(HONEST, SafetySection()).values()) == {""}
    assert run.view.rows[0].participants == ("good-1", "good-2")
    assert run.said("link")[""].startswith(f"the broker does not let us read {TOPICS.up('+', '#')} now")
    run.ledger.close()
