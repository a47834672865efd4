# SPDX-License-Identifier: Apache-2.0
"""What a broker of one's own does a second on this machine, and what it takes: chunks of QoS 1 from some senders to one
receiver, as updates come to a coordinator.

    python -m benchmarks.brokers [--kinds mosquitto,nats] [--bytes 262144,1024] [--messages 200] [--senders 2]

Senders and receiver are this program's own transports, and share its processor time: the rates are lower bounds, and
the broker's own seconds beside them say what it would do alone."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil

from benchmarks.fleet_watched import Watched
from coordinator.provisioning.broker import BrokerKind, LocalBroker
from fedcore.transport.base import Message, Received, TransportEvent
from fedcore.transport.mqtt import MqttTransport

__all__ = ["Measured", "measure"]

_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        start_seconds: Until a client can log in.
        seconds: From the first message that was sent to the last that arrived.
        arrived: Messages that arrived.
        broker_seconds: Of processor time.
        idle_bytes, peak_bytes: The broker's resident memory.
    """

    start_seconds: float
    seconds: float
    arrived: int
    broker_seconds: float
    idle_bytes: int
    peak_bytes: int


def measure(folder: Path, kind: BrokerKind, size_bytes: int, messages: int, senders: int) -> Measured:
    """Send so many messages through a fresh broker, and wait until all of them have arrived.

    Args:
        folder: For the broker's files.
        kind: Which broker.
        size_bytes: Of a message.
        messages: Of each sender.
        senders: How many.
    """
    began = time.monotonic()
    with LocalBroker(folder, kind=kind) as broker:
        start_seconds = time.monotonic() - began
        process = psutil.Process(broker.pid)
        watched, idle_bytes = Watched(broker.pid), process.memory_info().rss
        wanted, arrived, done = messages * senders, [0], threading.Event()

        def hear(event: TransportEvent) -> None:
            if isinstance(event, Received):
                arrived[0] += 1
                if arrived[0] == wanted:
                    done.set()

        # It spreads reconnects, and nobody is to lose a link here.
        jitter = random.Random(0)  # noqa: S311
        receiver = MqttTransport(broker.settings("receiver"), jitter)
        receiver.subscribe("fedkrso/2/b/node/+/up/#")
        clients = [receiver, *(MqttTransport(broker.settings(f"{number}"), jitter) for number in range(senders))]
        for client in clients:
            client.start(hear if client is receiver else lambda event: None)
            client.wait_connected(60)
        before = sum(process.cpu_times()[:2])
        began = time.monotonic()
        _send(clients[1:], os.urandom(size_bytes), messages)
        done.wait(_WAIT_SECONDS)
        seconds, used = time.monotonic() - began, sum(process.cpu_times()[:2]) - before
        watched.sample()
        for client in clients:
            client.stop()
    return Measured(start_seconds, seconds, arrived[0], used, idle_bytes, watched.peak_bytes)


def _send(senders: list[MqttTransport], payload: bytes, messages: int) -> None:
    left = dict.fromkeys(range(len(senders)), messages)
    while any(left.values()):
        moved = False
        for number, sender in enumerate(senders):
            if left[number] and sender.publish(Message(f"fedkrso/2/b/node/{number}/up/chunk", payload)):
                left[number] -= 1
                moved = True
        if not moved:
            time.sleep(0.001)


def main() -> None:
    """Measure each kind with each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="mosquitto,nats")
    parser.add_argument("--bytes", default="262144,1024")
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--senders", type=int, default=2)
    options = parser.parse_args()
    for size in map(int, options.bytes.split(",")):
        for kind in options.kinds.split(","):
            with tempfile.TemporaryDirectory() as folder:
                row = measure(Path(folder) / "b", cast("BrokerKind", kind), size, options.messages, options.senders)
            wanted = options.messages * options.senders
            print(
                f"{kind:9} {size:7} bytes: {row.arrived} of {wanted}, {row.arrived / row.seconds:.0f} a second, "
                f"{1e3 * row.broker_seconds / wanted:.2f} ms of the broker each, "
                f"{row.idle_bytes / 1e6:.0f} to {row.peak_bytes / 1e6:.0f} MB, up in {row.start_seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
