# SPDX-License-Identifier: Apache-2.0
"""The agent and its owner's policy: what goes out on the wire, what the worker is told, and a loop that no sensor
stops."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from plans import make_plan

from devices.base import Facts
from devices.kinds.simulated import Simulated
from edge_client.agent.agent import Agent
from edge_client.agent.lines import Callbacks
from edge_client.agent.resting import Surroundings
from edge_client.memory.monitor import Reading
from edge_client.node import Node
from edge_client.owner.policy import PolicySection
from edge_client.process.supervisor import Supervisor
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.device.readings import Readings
from fedcore.errors import WorkerError
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan
from fedcore.transport.base import Message, Received
from fedcore.transport.memory import MemoryBroker
from fedcore.wire.codec import decode
from fedcore.wire.messages import Declined, Offer, Status, Telemetry, Topics
from fedcore.wire.post import Post
from fedcore.worker.messages import Ready, Trained

TOPICS = Topics("t")
HOT, COOL = (Readings(temperatures_celsius={"cpu": celsius}, power_watts=7.5) for celsius in (91.0, 44.0))
TOO_HOT = "policy: cpu at 91.0 C, and max_temperature_celsius = 75"
AT_ONCE = PolicySection(max_temperature_celsius=75, patience_seconds=0, settle_seconds=0)


class Board(Simulated):
    """A device whose readings the test sets; it hangs while it is told to."""

    def __init__(self, readings: Readings) -> None:
        super().__init__(facts=Facts("simulated", "hot board"))
        self.now, self.hangs, self.go_on = readings, False, threading.Event()

    def read(self) -> Readings:
        if self.hangs:
            self.go_on.wait(120)
        return self.now


class Told(Supervisor):
    """A supervisor without a worker, which notes what it is told; a round's training never ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.told: list[str] = []
        self.route = "float32 on cpu"

    def configure(self, plan: Plan) -> None:
        self.told.append("configure")
        self._sink(Ready(0, 0, "", 8))

    def ready(self, event: Ready) -> None:
        pass

    def train(self, plan: Plan, path: Path, measured: Measurement | None = None) -> None:
        self.told.append(f"train {plan.round}")

    def release(self) -> None:
        self.told.append("release")

    def sample(self, at_seconds: float) -> Reading:
        return Reading(at_seconds, 0, None)


class Slow(Told):
    """Its worker loads until the test says that it has, and an end is noted too."""

    def configure(self, plan: Plan) -> None:
        self.told.append("configure")

    def end(self) -> None:
        self.told.append("end")

    def trained(self, server_round: int) -> None:
        path = self._folder / "outbox" / "t" / f"{server_round}.bin"
        path.write_bytes(b"update")
        self._sink(Trained(server_round, str(path), 8, 0.5, 1.0))

    def loaded(self) -> None:
        self._sink(Ready(0, 0, "", 8))


class Scene:
    """An agent in a thread, and what it says."""

    def __init__(
        self,
        folder: Path,
        board: Board,
        policy: PolicySection,
        supervise: Any = Told,
        *,
        keep_worker: bool = True,
        **options: Any,
    ) -> None:
        self.broker, self.board, self.beats = MemoryBroker(), board, [time.monotonic()]
        self.bodies: queue.Queue[Any] = queue.Queue()
        self.leader = self.broker.connect()
        self.leader.subscribe(TOPICS.up("+", "#"))
        self.leader.subscribe(TOPICS.status("+"))
        self.leader.start(
            lambda event: self.bodies.put(decode(event.payload).body) if isinstance(event, Received) else None
        )
        self._post = Post("t", "", None, 1)
        node = Node(
            node="n",
            run="t",
            model_folder=str(folder),
            folder=str(folder / "node"),
            data=DataSection(source="none.csv"),
            policy=policy,
            keep_worker=keep_worker,
            broker=BrokerSection(url="mqtts://b"),
        )
        self.said: list[str] = []
        self.agent = Agent(
            node,
            self.broker.connect(),
            random.Random(0),
            partial(supervise, node, folder, 2**30),
            callbacks=Callbacks(self.said.append, lambda state: self.beats.append(time.monotonic())),
            surroundings=Surroundings(board, **options),
        )
        self.ended: list[BaseException | None] = []
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        try:
            self.agent.run()
            self.ended.append(None)
        except BaseException as error:  # noqa: BLE001 (looked at by the test)
            self.ended.append(error)

    def invite(self, server_round: int) -> None:
        self.leader.publish(Message(TOPICS.plan, self._post.seal(make_plan(server_round), server_round), retain=True))

    def next(self, kind: type, right: Callable[[Any], bool] = lambda body: True, seconds: float = 120.0) -> Any:
        """The next message of a kind that is as wanted; others are passed over."""
        deadline = time.monotonic() + seconds
        while True:
            body = self.bodies.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(body, kind) and right(body):
                return body

    def resting(self, reason: str) -> Status:
        status: Status = self.next(Status, lambda status: status.state == "resting")
        assert status.reason == reason
        return status

    def stop(self) -> None:
        self.board.go_on.set()
        self.agent.stop()
        self.thread.join(120)
        assert not self.thread.is_alive()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(*arguments: Any, **options: Any) -> Scene:
        made.append(Scene(tmp_path, *arguments, **options))
        made[-1].thread.start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


def told(scene: Scene) -> list[str]:
    supervisor = scene.agent._supervisor
    assert isinstance(supervisor, Told)
    return supervisor.told


def test_a_worker_that_is_not_kept_ends_with_its_update_but_not_for_a_late_word_while_it_loads(
    scene: Callable[..., Scene],
) -> None:
    node = scene(Board(COOL), PolicySection(), Slow, keep_worker=False)
    supervisor = node.agent._supervisor
    assert isinstance(supervisor, Slow)
    node.invite(1)
    node.next(Status, lambda status: status.state == "loading")
    # Of a worker that was let go before this one.
    supervisor.trained(1)
    supervisor.loaded()
    node.next(Status, lambda status: status.state == "training")
    assert told(node) == ["configure", "train 1"]
    supervisor.trained(1)
    node.next(Status, lambda status: status.state == "sending")
    assert told(node) == ["configure", "train 1", "end"] and not node.agent.session.worker_ready


def test_a_name_that_is_used_again_needs_no_restart_of_the_agent(scene: Callable[..., Scene]) -> None:
    node = scene(Board(COOL), PolicySection(), Slow)
    supervisor = node.agent._supervisor
    assert isinstance(supervisor, Slow)
    node._post = Post("t", "", None, 900, "a" * 32)
    node.invite(1)
    node.next(Status, lambda status: status.state == "loading")
    supervisor.loaded()
    node.next(Status, lambda status: status.state == "training")
    supervisor.trained(1)
    node.next(Offer)
    old = node._post.seal(make_plan(2), 2)
    # Aborted, its folder deleted, and begun again under the same name.
    node._post = Post("t", "", None, 1, "b" * 32)
    node.invite(1)
    node.next(Status, lambda status: status.state == "loading")
    node.leader.publish(Message(TOPICS.plan, old))
    supervisor.loaded()
    node.next(Status, lambda status: status.state == "training")
    supervisor.trained(1)
    node.next(Offer)
    assert told(node) == 2 * ["end", "configure", "train 1"]
    assert [path.name for path in sorted((node.agent._folder / "outbox" / "t").glob("*.bin"))] == ["1.bin"]
    lines = [str(line) for line in node.said]
    assert "another run of this name (bbbbbbbbbbbb): what was done in the last one is left" in lines
    assert any("a plan of an earlier run of this name, played again" in line for line in lines)
    # The coordinator hears that, too.
    numbers = node.next(Telemetry, lambda numbers: bool(numbers.refused))
    assert numbers.refused == "a plan of an earlier run of this name, played again"


def test_a_hot_node_rests_and_says_why_and_a_cool_one_goes_on(scene: Callable[..., Scene]) -> None:
    hot = scene(Board(HOT), AT_ONCE)
    status = hot.resting(TOO_HOT)
    assert (status.device, status.software, status.route) == ("hot board", version("fedkrso"), "float32 on cpu")
    hot.invite(1)
    assert hot.next(Declined).reason == TOO_HOT
    numbers = hot.next(Telemetry, lambda numbers: numbers.readings is not None)
    assert (numbers.state, numbers.readings, numbers.accelerator_bytes) == ("resting", HOT, None)
    assert told(hot) == ["release"], "nothing is loaded by a node that rests"
    hot.board.now = COOL
    assert hot.next(Status, lambda status: status.state == "training").reason == ""
    assert told(hot) == ["release", "configure", "train 1"]
    hot.board.now = HOT
    assert hot.next(Declined).reason == TOO_HOT and told(hot)[-1] == "release"
    hot.resting(TOO_HOT)


def test_another_policy_counts_at_once(scene: Callable[..., Scene]) -> None:
    closed = PolicySection(hours="22:00-06:00")
    node = scene(Board(COOL), closed, local_time=lambda: datetime(2026, 5, 4, 12, 0))
    node.resting("policy: outside hours = 22:00-06:00")
    node.invite(1)
    node.next(Declined)
    node.agent.set_policy(PolicySection(hours="11:00-13:00"))
    node.next(Status, lambda status: status.state == "training")
    node.agent.set_policy(closed)
    node.resting("policy: outside hours = 22:00-06:00")
    assert node.said.count("the policy is another one now") == 2


def test_a_sensor_that_hangs_stops_no_heartbeat(scene: Callable[..., Scene]) -> None:
    node = scene(Board(COOL), PolicySection())
    node.next(Telemetry, lambda numbers: numbers.readings == COOL)
    node.board.hangs = True
    time.sleep(9.0)  # an idle node's loop turns every other second; the sensor hangs for thirty
    gaps = [after - before for before, after in pairwise(node.beats)]
    assert len(gaps) > 3 and max(gaps) < 5.0
    assert node.thread.is_alive()


def test_a_node_whose_sensors_never_answer_rests_if_its_policy_needs_them(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_client.agent.resting._FIRST_READING_SECONDS", 0.2)
    board = Board(COOL)
    board.hangs = True
    node = scene(board, AT_ONCE)
    node.resting("policy: max_temperature_celsius = 75 is set, and this device does not tell any temperature")
    board.hangs = False
    board.go_on.set()
    node.next(Status, lambda status: status.state == "idle")


def test_a_worker_that_cannot_import_ends_the_node_at_once(
    scene: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a board whose torch was built for another CUDA: it is installed, and its libraries are not there."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text(
        "raise ImportError('libcudart.so.12: cannot open shared object file: No such file or directory')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken))
    node = scene(Board(COOL), PolicySection(), Supervisor)
    node.invite(1)
    said = "this installation cannot train: libcudart.so.12: cannot open shared object file: No such file or directory"
    assert node.next(Declined, seconds=60).reason == said
    node.thread.join(120)
    (error,) = node.ended
    assert isinstance(error, WorkerError) and error.one_line() == f"{said} (pip install 'fedkrso[train]')"
    log = (tmp_path / "node" / "worker.log").read_text()
    assert log.count("Traceback") == 1, "it was started again, which mends nothing"


def test_a_worker_is_let_go_without_waiting_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is busy loading its libraries does not listen: it is killed after some seconds, and the agent's loop
    turned all the time."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "torch.py").write_text("import time\ntime.sleep(120)\n")
    monkeypatch.setenv("PYTHONPATH", str(slow))
    events: queue.Queue[Any] = queue.Queue()
    node = Node(
        node="n",
        run="t",
        model_folder=".",
        folder=str(tmp_path / "node"),
        data=DataSection(source="x"),
        broker=BrokerSection(url="mqtts://b"),
    )
    supervisor = Supervisor(node, tmp_path, 2**30, events.put, lambda line: None)
    before = psutil.Process().children()
    supervisor.configure(make_plan(1))
    (worker,) = (child for child in psutil.Process().children() if child not in before)
    pid = worker.pid
    assert supervisor.is_worker(pid)
    began = time.monotonic()
    supervisor.release()
    assert time.monotonic() - began < 1.0 and not supervisor.running
    supervisor.end()
    assert not psutil.pid_exists(pid)
    assert not supervisor.is_worker(pid), "its end is no news"
