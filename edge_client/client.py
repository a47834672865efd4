# SPDX-License-Identifier: Apache-2.0
"""A node, run from a program: what `fedkrso client run` calls, and what people embed."""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from edge_client.agent.agent import Agent
from edge_client.agent.lines import Callbacks
from edge_client.agent.making import make_agent
from edge_client.memory.limits import budget_bytes
from edge_client.node import Node
from edge_client.owner.serving import training_bytes
from edge_client.process.packages import require_training_packages
from fedcore.config.broker import mqtt_settings
from fedcore.config.data import data_section
from fedcore.config.fitting import require_fitting
from fedcore.config.models import find_model
from fedcore.config.reading import load_config
from fedcore.config.sections import DataSection
from fedcore.config.words import converted
from fedcore.errors import ConfigError, FedkrsoError, RunError
from fedcore.system.locks import owned
from fedcore.system.logs import Line
from fedcore.transport.base import CONNECT_SECONDS
from fedcore.transport.client import client_id
from fedcore.transport.mqtt import MqttTransport
from fedcore.worker.looking import Look, look_at

__all__ = ["Client"]


class Client:
    """Takes part in a run with this device's own data. The text stays on the device; training runs in a process of its
    own.

    This process stays light: it imports neither torch nor NumPy, talks MQTT, and keeps the worker within the budget,
    which holds for this whole process and the worker together.

    Args:
        node: What a node file says; or its id, with the file's other keys as `fields`.
        data: This node's data in place of the file's: rows (dicts), a `datasets.Dataset`, a path, or a function.
        on_event: Called with each thing that happens, as the log would print it.
        heartbeat: Called at every turn of the loop, with what the node is doing: for a watchdog.
        stay: Stay when the run is finished, for the next one of the same name.
        fields: Keys of a node file: `run`, `model_folder`, `broker`, `memory_budget`, ...

    Raises:
        ConfigError: A key is missing or wrong.

    Example:
        >>> broker = {"url": "mqtt://localhost:1883", "insecure": True}
        >>> client = Client("kitchen", run="reviews", model_folder="model", broker=broker, data="reviews.csv")
        >>> client.node.node, client.node.memory_budget, client.running
        ('kitchen', 'auto', False)
    """

    def __init__(
        self,
        node: Node | str,
        *,
        data: object = None,
        on_event: Callable[[Line], None] = lambda line: None,
        heartbeat: Callable[[str], None] = lambda state: None,
        stay: bool = False,
        **fields: Any,
    ) -> None:
        self._data, self._on_event, self._heartbeat, self._stay = data, on_event, heartbeat, stay
        self._place = "node"
        self.node = node if isinstance(node, Node) else _node(node, data, fields)
        if self.node.fleet:
            remedy = "leave fleet out; `fedkrso client run` and edge_client.fleet.FleetClient wait for a fleet's runs"
            raise ConfigError("a node of one run names no fleet", place="fleet", remedy=remedy)
        self._agent: Agent | None = None
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._stopped = False

    @classmethod
    def from_file(cls, path: Path | str, *, data: object = None, **options: Any) -> Client:
        """Of a node file; with `data`, the file needs no `[data]`.

        Args:
            path: NODE.toml.
            data: As of the class.
            options: As of the class.

        Raises:
            FedkrsoError: The file is wrong, or what it names is not there; the place is `file: key`.
        """
        client = cls(load_config(Path(path), Node, {} if data is None else _NO_DATA), data=data, **options)
        client._place = str(path)
        client._whole_budget()
        return client

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether it takes part now."""
        return self._agent is not None

    def check(self) -> int:
        """Look at what the node names on this machine; its memory budget in bytes.

        Raises:
            FedkrsoError: No such model folder, a budget that cannot be, or broker settings that cannot be used.
        """
        require_fitting(find_model(self.node.model_folder, place=f"{self._place}: model_folder"))
        return self._whole_budget()

    def examine(self) -> tuple[str, ...]:
        """Look at all that the node names, its data too, as its worker will read them; a line for each thing.

        Raises:
            FedkrsoError: As of `check`, or a row that training would refuse whatever the task, with its `file:line`.
        """
        budget = self.check()
        given = self.node if self._data is None else msgspec.structs.replace(self.node, data=self._given())
        lines = look_at(Look(rows=given.rows), os.environ)
        return (*lines, f"memory budget: {budget / 2**20:.0f} MiB")

    def _given(self) -> DataSection:
        """The section of the program's own data, written where the worker finds it."""
        return data_section(self._data, self.node.data, Path(self.node.folder) / "data.jsonl")

    def _whole_budget(self) -> int:
        """What `check` gives, without reading a tokenizer: some megabytes that an agent would keep. Its worker reads
        it."""
        find_model(self.node.model_folder, place=f"{self._place}: model_folder")
        budget = budget_bytes(self.node.memory_budget, place=f"{self._place}: memory_budget")
        mqtt_settings(self.node.broker, self._client_id)
        return budget

    def run(self) -> None:
        """Take part until the run is finished, or `stop` is called.

        Raises:
            FedkrsoError: This node's data, model or budget is wrong, or the broker refuses it: nothing that waiting
                would mend.
        """
        require_training_packages()
        if self._data is not None:
            self.node = msgspec.structs.replace(self.node, data=self._given())
        folder, remedy = Path(self.node.folder), "stop that one first, or give this node another folder"
        with owned(folder, f"node {self.node.node} of run {self.node.run}", remedy=remedy):
            self._agent = self._made()
            if self._stopped:
                self._agent.stop()
            url, seconds = self.node.broker.url, CONNECT_SECONDS
            self._on_event(Line(f"connecting to {url}, for at most {seconds:.0f} s", event="connecting"))
            try:
                self._agent.run(leave_when_finished=not self._stay)
            finally:
                self._agent = None

    def start(self) -> None:
        """Run in a thread of its own, for programs with a loop of their own.

        Raises:
            RunError: It runs already.
        """
        if self._thread is not None:
            raise RunError("the client runs already", place=self.node.node, remedy="stop() it first")
        self._stopped, self._failed = False, None
        self._thread = threading.Thread(target=self._run, name=f"fedkrso {self.node.node}", daemon=True)
        self._thread.start()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until a started client has ended; False if it has not by then.

        Raises:
            FedkrsoError: What it ended with.
        """
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        return True

    def leave(self) -> None:
        """Have `run` return at the next turn of its loop; from any thread, or from a signal handler."""
        self._stopped = True
        if self._agent is not None:
            self._agent.stop()

    def stop(self) -> None:
        """Leave, and wait for a started client to have left; what is not sent yet stays on the disk.

        Raises:
            FedkrsoError: What it ended with, if it had ended before.
        """
        self.leave()
        self.wait()

    def obey(self, node: Node) -> None:
        """Take another memory budget and policy, while it runs; from any thread, or from a signal handler.

        Raises:
            BudgetError: The budget cannot be.
        """
        budget = budget_bytes(node.memory_budget, place=f"{self._place}: memory_budget")
        training = training_bytes(budget, self.node.serve)
        if self._agent is not None:
            self._agent.set_budget(training)
            self._agent.set_policy(node.policy)

    @property
    def _client_id(self) -> str:
        return client_id(self.node.run, self.node.node)

    def _made(self) -> Agent:
        # Spreads reconnects of many nodes; decides nothing in the model.
        jitter = random.Random(secrets.randbits(64))  # noqa: S311
        return make_agent(
            self.node,
            MqttTransport(mqtt_settings(self.node.broker, self._client_id), jitter),
            jitter,
            training_bytes(self._whole_budget(), self.node.serve),
            Callbacks(lambda line: self._on_event(line if isinstance(line, Line) else Line(line)), self._heartbeat),
            place=self._place,
        )

    def _run(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._failed = error
            if isinstance(error, FedkrsoError):
                # Whoever does not wait yet hears of it too.
                words, code = error.one_line(), error.exit_code
                self._on_event(Line(words, event="failed", level="error", exit_code=code))


_NO_DATA: dict[str, Any] = {"data": {"source": ""}}
"""Stands where a program gives the data itself."""


def _node(name: str, data: object, fields: dict[str, Any]) -> Node:
    """A node from keywords, checked as a file would be."""
    raw = {**({} if data is None else _NO_DATA), **fields, "node": name}
    return converted(msgspec.to_builtins(raw), Node, place="Client")
