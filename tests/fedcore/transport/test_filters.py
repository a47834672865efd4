# SPDX-License-Identifier: Apache-2.0
"""Filters that a broker refuses: what is forbidden is said at once, what may pass is asked again. Real brokers that
refuse: mosquitto with rights for subscriptions, and nats-server, whose one word means either."""

from __future__ import annotations

import json
import queue
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto, needs_nats

from benchmarks.mosquitto import Mosquitto
from coordinator.messages.probe import usable_chunk_bytes
from coordinator.provisioning.broker import free_port
from coordinator.provisioning.nats import configuration, find_nats, version_of
from fedcore.errors import BrokerRefused
from fedcore.transport.backoff import Backoff
from fedcore.transport.base import Connected, Denied, Limits, Message, Received
from fedcore.transport.filters import Filters
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from tests.patience import until

_GRANTED, _ANY, _FORBIDDEN = 1, 128, 135


class _Asking:
    """Filters of which one is asked for, and the broker's answers."""

    def __init__(self) -> None:
        self.filters, self.number = Filters(random.Random(0), patience_seconds=60.0), 0
        self.filters.add("f")

    def answer(self, code: int, now: float) -> Denied | None:
        self.number += 1
        self.filters.ask("f", lambda: self.number)
        return self.filters.answered(self.number, code, str(code), now)


def test_what_is_refused_without_a_reason_is_told_once_and_asked_again_with_growing_pauses() -> None:
    asking = _Asking()
    assert asking.answer(_ANY, 0.0) == Denied("f", "128", lasting=False)
    waits, now = [], 0.0
    for _ in range(5):
        wait = asking.filters.wait_seconds(now)
        assert wait is not None and asking.filters.due(now + wait) == ["f"]
        waits.append(wait)
        now += wait
        assert asking.answer(_ANY, now) is None and not asking.filters.granted
    assert all(wait <= 0.5 * 2**number for number, wait in enumerate(waits)) and max(waits) > 1.0
    assert asking.answer(_GRANTED, now) is None and asking.filters.granted and asking.filters.wait_seconds(now) is None


def test_what_was_never_granted_for_long_counts_as_forbidden_and_is_asked_all_the_same() -> None:
    asking = _Asking()
    asking.answer(_ANY, 0.0)
    assert asking.answer(_ANY, 59.0) is None
    assert asking.answer(_ANY, 61.0) == Denied("f", "128", lasting=True)
    assert asking.answer(_ANY, 70.0) is None and asking.filters.wait_seconds(70.0) is not None


def test_what_was_granted_once_is_never_forbidden_without_a_reason() -> None:
    asking = _Asking()
    asking.answer(_GRANTED, 0.0)
    assert list(asking.filters.linked()) == ["f"] and not asking.filters.granted
    assert asking.answer(_ANY, 1.0) == Denied("f", "128", lasting=False)
    assert asking.answer(_ANY, 500.0) is None
    # Once for each link.
    asking.filters.linked()
    assert asking.answer(_ANY, 501.0) == Denied("f", "128", lasting=False)
    assert asking.answer(_FORBIDDEN, 502.0) == Denied("f", "135", lasting=True)


def test_what_is_forbidden_is_said_at_once_and_not_asked_again_on_this_link() -> None:
    asking = _Asking()
    assert asking.answer(_FORBIDDEN, 0.0) == Denied("f", "135", lasting=True)
    assert asking.filters.wait_seconds(0.0) is None and not asking.filters.due(1e9)


def test_answers_to_other_requests_and_to_filters_that_nobody_wants_any_more_say_nothing() -> None:
    asking = _Asking()
    assert asking.filters.answered(7, _ANY, "", 0.0) is None
    asking.filters.ask("f", lambda: 8)
    asking.filters.remove("f")
    assert asking.filters.answered(8, _ANY, "", 0.0) is None and asking.filters.granted


def test_those_who_failed_together_do_not_come_back_together() -> None:
    pauses = [Backoff(1.0, 30.0, random.Random(f"node-{number}")).next_seconds() for number in range(1000)]
    tenths = [sum(number / 10 <= pause < (number + 1) / 10 for pause in pauses) for number in range(10)]
    assert min(tenths) > 60 and max(tenths) < 140


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[MqttTransport, queue.Queue[Any]]]]:
    made: list[MqttTransport] = []

    def connected(
        port: int, name: str, *filters: str, login: bool = True, **options: Any
    ) -> tuple[MqttTransport, queue.Queue[Any]]:
        events: queue.Queue[Any] = queue.Queue()
        settings = MqttSettings(f"mqtt://127.0.0.1:{port}", name, *((name, f"{name}-word") if login else ()))
        made.append(transport := MqttTransport(settings, random.Random(0), **options))
        for topic_filter in filters:
            transport.subscribe(topic_filter)
        transport.start(events.put)
        transport.wait_connected(60)
        return transport, events

    yield connected
    for transport in made:
        transport.stop()


def _next(events: queue.Queue[Any], kind: type) -> Any:
    while not isinstance(event := events.get(timeout=120), kind):
        pass
    return event


def test_mosquitto_with_rights_says_what_is_forbidden(tmp_path: Path, connect: Any) -> None:
    needs_mosquitto()
    plugin = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        pytest.skip("needs mosquitto's dynamic security")
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    (tmp_path / "rights.json").write_text(json.dumps({"defaultACLAccess": access}))
    broker = Mosquitto(tmp_path, f"plugin {plugin}", f"plugin_opt_config_file {tmp_path / 'rights.json'}")
    try:
        client, events = connect(broker.address[1], "coordinator", "t/+", login=False)
        assert _next(events, Denied) == Denied("t/+", "Not authorized", lasting=True)
        with pytest.raises(BrokerRefused, match=r"^t/probe: .*does not let us read: Not authorized .*allow the coord"):
            usable_chunk_bytes(client, events, "t/probe", Limits(None, ""), 4096, b"n")
    finally:
        broker.stop()


class _Nats:
    """nats-server with a configuration that can be changed while it runs."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        needs_nats()
        program = find_nats()
        assert program is not None
        self.port, self._file, self._folder = free_port(), folder / "nats.conf", folder
        self._version = version_of(program)
        self.write(**changes)
        self._process = subprocess.Popen([program, "-c", str(self._file), "-l", str(folder / "log")])
        until(lambda: (folder / "log").exists() and "ready" in (folder / "log").read_text())

    def write(self, rights: Any = None, consumers: int | None = None) -> None:
        words = {name: f"{name}-word" for name in ("coordinator", "other")}
        text = configuration(self.port, self._folder / "store", words, rights=rights, version=self._version)
        document = json.loads(text)
        if consumers is not None:
            document["jetstream"]["limits"]["default_max_consumers"] = consumers
        self._file.write_text(json.dumps(document))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(120)


def test_nats_refuses_what_it_has_no_room_for_and_grants_it_when_it_has(tmp_path: Path, connect: Any) -> None:
    broker = _Nats(tmp_path, consumers=2)
    if broker._version < (2, 15):
        pytest.skip("older ones have no such limit")
    try:
        other, _ = connect(broker.port, "other", "a", "b")
        until(lambda: other._filters.granted)
        client, events = connect(broker.port, "coordinator", "t", patience_seconds=600.0)
        assert not (denied := _next(events, Denied)).lasting and denied.topic_filter == "t"
        other.unsubscribe("a")
        until(lambda: client._filters.granted)
        assert client.publish(Message("t", b"heard")) and _next(events, Received).payload == b"heard"
    finally:
        broker.stop()


def test_nats_refuses_what_is_forbidden_with_the_same_word_and_patience_ends(tmp_path: Path, connect: Any) -> None:
    broker = _Nats(tmp_path, rights={"coordinator": [("readwrite", "t/#")]})
    try:
        _, events = connect(broker.port, "coordinator", "t/x", "else", patience_seconds=1.0)
        assert _next(events, Connected)
        assert [_next(events, Denied).lasting for _ in range(2)] == [False, True]
    finally:
        broker.stop()
