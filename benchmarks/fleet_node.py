# SPDX-License-Identifier: Apache-2.0
"""Many simulated nodes in one process: real agents over real MQTT connections, with no worker behind them.

    python -m benchmarks.fleet_node SPEC.json

Everything that touches the wire or the outbox is the product's own: agent, session, transfers, outbox, MqttTransport.
Only the supervisor is replaced: instead of training it writes an update file of the plan's shape, and it adopts a
published state by checking its bytes. `benchmarks.fleet` starts these processes and reads the counts that each leaves
behind."""

from __future__ import annotations

import hashlib
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.fleet_contents import CONTENTS, Bodies, examples_of
from devices.kinds.simulated import Simulated, Step
from edge_client.agent.agent import Agent
from edge_client.agent.lines import Callbacks
from edge_client.agent.messages import Keys
from edge_client.agent.resting import Surroundings
from edge_client.memory.monitor import Reading
from edge_client.memory.probes import ProcessMemory
from edge_client.node import Node
from edge_client.process.supervisor import Supervisor
from fedcore.config.broker import mqtt_settings
from fedcore.config.reading import load_config
from fedcore.device.readings import Readings
from fedcore.errors import FedkrsoError, TransportError
from fedcore.round.header import UpdateHeader
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan
from fedcore.transport.base import Message, Received, Sink, TransportEvent
from fedcore.transport.mqtt import MqttSettings, MqttTransport
from fedcore.wire.identity import load_public_key, load_signing_key
from fedcore.worker.messages import Adopt, Adopted, Event, Ready, Trained
from fedcore.worker.process import WorkerDied

_MOST_STARTS = 50
_TROUBLE = re.compile("refused|declined|malformed|disconnected|error|room|full")

_READINGS = Readings(
    memory_total_bytes=8 * 10**9,
    memory_available_bytes=3 * 10**9,
    temperatures_celsius={"cpu": 48.5, "gpu": 47.1, "soc0": 46.0, "soc1": 46.2, "soc2": 45.9, "tj": 48.5},
    power_watts=7.4,
    power_mode="15W",
    throttled=False,
    on_mains=True,
    processor_percent=70.0,
    accelerator_percent=95.0,
)

__all__ = ["Counts", "FleetSpec", "run_nodes"]


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes of one process."""

    node_files: list[str]
    """Of every node here; the number at the end of a node's name says what it sends."""
    train_seconds: float
    """How long "training" takes."""
    counts: str
    """File for what was counted."""
    spread_seconds: float = 0.0
    """Nodes log in for the first time at instants drawn from so long."""


class Counts(msgspec.Struct):
    """What crossed the wire at the nodes of a process; messages by the last word of their topic."""

    sent: dict[str, int] = msgspec.field(default_factory=Counter)
    sent_bytes: dict[str, int] = msgspec.field(default_factory=Counter)
    held_back: dict[str, int] = msgspec.field(default_factory=Counter)
    """Messages that the transport did not take: no link, or too much under way."""
    received: dict[str, int] = msgspec.field(default_factory=Counter)
    received_bytes: dict[str, int] = msgspec.field(default_factory=Counter)
    needed_chunks: int = 0
    """Chunks of the objects that were adopted."""
    adopted: int = 0
    processor_seconds: float = 0.0
    begun_again: int = 0
    """Agents that the broker did not let in, and that were begun again, as a service is."""
    trouble: list[str] = msgspec.field(default_factory=list)
    """Lines of agents that ended with an error, and refusals."""


class CountingTransport(MqttTransport):
    """An MqttTransport whose messages are counted."""

    def __init__(self, settings: MqttSettings, jitter: random.Random, counts: Counts, lock: threading.Lock) -> None:
        super().__init__(settings, jitter)
        self._counts, self._counting = counts, lock

    def start(self, sink: Sink, will: Message | None = None) -> None:
        """See `Transport`."""

        def counting(event: TransportEvent) -> None:
            if isinstance(event, Received):
                words = event.topic.split("/")
                kind = "published_state" if words[3:4] == ["state"] else words[-1]
                with self._counting:
                    self._counts.received[kind] += 1
                    self._counts.received_bytes[kind] += len(event.payload)
            sink(event)

        super().start(counting, will)

    def publish(self, message: Message) -> bool:
        """See `Transport`."""
        taken = super().publish(message)
        kind = message.topic.rsplit("/", 1)[-1]
        with self._counting:
            if taken:
                self._counts.sent[kind] += 1
                self._counts.sent_bytes[kind] += len(message.payload)
            else:
                self._counts.held_back[kind] += 1
        return taken


class SimulatedSupervisor(Supervisor):
    """A supervisor without a worker: what it is asked for is done at once, or when training's time is over."""

    def __init__(
        self,
        bodies: Bodies,
        counts: Counts,
        train_seconds: float,
        node: Node,
        model_folder: Path,
        budget_bytes: int,
        sink: Callable[[Event | WorkerDied], None],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(node, model_folder, budget_bytes, sink, say)
        self._bodies, self._counts, self._train_seconds = bodies, counts, train_seconds
        self._index = int(node.node.rsplit("-", 1)[-1])
        self._held = (0, 0, "")
        self._chunk_bytes = 0

    def configure(self, plan: Plan) -> None:
        """The replica is there at once, at the version it held."""
        self._chunk_bytes = plan.chunk_bytes
        self._sink(Ready(*self._held, examples_of(self._index)))

    def adopt(self, command: Adopt) -> None:
        """Take a published state for what the plan says it is, if its bytes are those that the plan names."""
        path = Path(command.path)
        data = path.read_bytes()
        if not hashlib.sha256(data).hexdigest().startswith(path.stem):
            raise AssertionError(f"{path} is not what its name says")
        self._held = (command.version, command.generation, command.digest)
        self._counts.adopted += 1
        self._counts.needed_chunks += -(-len(data) // self._chunk_bytes)
        self._sink(Adopted(*self._held))

    def train(self, plan: Plan, path: Path, measured: Measurement | None = None) -> None:
        """Write the round's update."""
        header = UpdateHeader(
            run=self._node.run,
            run_id=plan.run_id,
            round=plan.round,
            node=self._node.node,
            version=plan.version,
            examples=examples_of(self._index),
            rank=plan.training.rank,
            subspaces=tuple(range(len(plan.training.seeds))),
            loss=1.0,
            seconds=0.0,
            measured=measured,
        )
        self._bodies.write(path, plan, header, self._index % CONTENTS)
        trained = Trained(plan.round, str(path), header.examples, header.loss, header.seconds)
        if self._train_seconds:
            threading.Timer(self._train_seconds, self._sink, [trained]).start()
        else:
            self._sink(trained)

    def sample(self, at_seconds: float) -> Reading:
        """Made up: the process belongs to all nodes."""
        used = (400 + self._index) * 10**6
        self.worker_memory = ProcessMemory(used, used // 2, used // 2, None)
        return Reading(at_seconds, 0, used, 2 * 10**9, 4 * 10**9)


def run_nodes(spec: FleetSpec) -> Counts:
    """Run every node of a process until the run is finished; what was counted."""
    counts, lock, bodies = Counts(), threading.Lock(), Bodies()
    supervise = partial(SimulatedSupervisor, bodies, counts, spec.train_seconds)

    def say(line: str) -> None:
        if _TROUBLE.search(line):
            with lock:
                counts.trouble.append(str(line))

    def serve(node: Node) -> None:
        # Spreads this node's requests as a device's own clock and noise would.
        jitter = random.Random(node.node)  # noqa: S311
        if spec.spread_seconds:
            # Nobody switches a whole fleet on at one instant.
            time.sleep(jitter.uniform(0.0, spec.spread_seconds))
        for left in reversed(range(_MOST_STARTS)):
            try:
                live(node, jitter)
                return
            except FedkrsoError as error:
                if not left or not isinstance(error, TransportError):
                    say(f"error: {error.one_line()}")
                    return
                # A broker that lets nobody in: whatever looks after the agent begins it again.
                with lock:
                    counts.begun_again += 1

    def live(node: Node, jitter: random.Random) -> None:
        trust = node.trust
        key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
        coordinator = None if trust.coordinator_key is None else load_public_key(trust.coordinator_key)
        settings = mqtt_settings(node.broker, f"fedkrso-{node.run}-{node.node}")
        # One machine stands for many: its own sensors are nobody's. These numbers are as many as a board has.
        device = Simulated([Step(0.0, _READINGS)])
        Agent(
            node,
            CountingTransport(settings, jitter, counts, lock),
            jitter,
            partial(supervise, node, Path(), 2**30),
            keys=Keys(key, coordinator),
            callbacks=Callbacks(say),
            surroundings=Surroundings(device),
        ).run()

    # Read here: msgspec's first look into a type is not safe in several threads (see `fedcore.wire.codec`).
    nodes = [load_config(Path(file), Node) for file in spec.node_files]
    threads = [threading.Thread(target=serve, args=[node]) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts.processor_seconds = sum(os.times()[:2])
    return counts


if __name__ == "__main__":
    found = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=FleetSpec)
    Path(found.counts).write_bytes(msgspec.json.encode(run_nodes(found)))
