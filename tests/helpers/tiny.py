# SPDX-License-Identifier: Apache-2.0
"""A tiny real run: random weights of BERT's shape, a vocabulary of a few words, real broker, coordinator, agents and
workers, seconds.

The checkpoint, its schema and what a worker traces on its first start are made once and shared; everything that a run
decides is its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cluster import Cluster
from proxy import Proxy, Script
from workshop import LABELS, Workshop, program

from coordinator.provisioning.broker import BrokerKind, LocalBroker
from coordinator.store.folder import RunFolder
from coordinator.store.places import open_ledger
from tests.patience import Patience

__all__ = ["Recipe", "Tiny", "run_name", "undisturbed"]

CHUNK_BYTES = 1024


@dataclass(frozen=True)
class Recipe:
    """What decides a run's digest."""

    homes: int = 2
    rounds: int = 3
    schedule: str = "pool"
    seed: int = 3
    buffer_size: int = 0
    """Of a run whose rounds are buffered."""

    @property
    def name(self) -> str:
        return f"{self.schedule}-{self.homes}-{self.rounds}-{self.seed}-{self.buffer_size}"


def run_name(folder: Path) -> str:
    """The name of the run in a folder."""
    return f"t{zlib.crc32(str(folder).encode()):08x}"


class Tiny(Cluster):
    """A run through a proxy, whose processes can be killed and started again.

    Args:
        folder: The run's own, fresh.
        workshop: What is shared.
        recipe: What decides the digest.
        script: What the proxy does.
        persistence: Whether the broker keeps sessions and retained messages on disk.
        ledger: The job's section about it.
    """

    chunk_bytes = CHUNK_BYTES

    broker_kind: BrokerKind = "mosquitto"
    qos = 1

    def __init__(
        self,
        folder: Path,
        workshop: Workshop,
        recipe: Recipe,
        script: Script | None = None,
        *,
        persistence: bool = False,
        ledger: str = "",
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.workshop, self.recipe = folder, workshop, recipe
        users = ["coordinator", *self.names]
        self.broker = LocalBroker(folder / "broker", users, kind=self.broker_kind, persistence=persistence)
        self.proxy = Proxy(self.broker.port, script or Script())
        self.log = (folder / "log").open("w+b")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.homes: list[subprocess.Popen[bytes] | None] = [None] * recipe.homes
        self.leader: subprocess.Popen[bytes] | None = None
        for user, word in self.broker.passwords.items():
            (folder / user).touch(mode=0o600)
            (folder / user).write_text(word)
        (folder / "job.toml").write_text(self._job_text() + ledger)
        for index, name in enumerate(self.names):
            (folder / f"{name}.toml").write_text(self._node_text(index))
            workshop.warm(self.node_folder(index))

    @property
    def names(self) -> list[str]:
        return [f"home-{index}" for index in range(self.recipe.homes)]

    @property
    def run(self) -> str:
        """The run's name: of this run alone, since memory cgroups are named after it."""
        return run_name(self.folder)

    @property
    def files(self) -> RunFolder:
        return RunFolder(self.folder / self.run)

    def node_folder(self, index: int) -> Path:
        return self.folder / f"node-{index}"

    def start(self, *arguments: object, prepare: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        environment = self.workshop.environment
        self.processes.append(
            subprocess.Popen(program(*arguments), stdout=self.log, stderr=self.log, env=environment, preexec_fn=prepare)
        )
        return self.processes[-1]

    def lead(self) -> None:
        """Start the coordinator, or go on with its run."""
        if self.files.has_ledger():
            self.leader = self.start("coordinator", "resume", self.run, "--runs", self.folder)
        else:
            self.leader = self.start("coordinator", "run", self.folder / "job.toml", "--runs", self.folder)

    def kill_leader(self) -> None:
        """Kill the coordinator; `lead` goes on with its run."""
        assert self.leader is not None
        self.leader.kill()
        self.leader.wait()

    def join(self, index: int) -> None:
        """Start a home."""
        self.homes[index] = self.start("client", "run", self.folder / f"home-{index}.toml")

    def workers(self, index: int) -> list[psutil.Process]:
        """The home's worker processes."""
        home = self.homes[index]
        try:
            return [] if home is None else psutil.Process(home.pid).children()
        except psutil.NoSuchProcess:
            return []

    def begin(self) -> None:
        """Start everybody."""
        self.lead()
        for index in range(self.recipe.homes):
            self.join(index)

    def check_alive(self) -> None:
        """Nobody may have ended with an error."""
        for what, process in [("coordinator", self.leader), *zip(self.names, self.homes, strict=True)]:
            code = None if process is None else process.poll()
            assert code in (None, 0, -signal.SIGKILL), f"{what} ended with {code}: {self.output()[-4000:]}"

    @property
    def ended(self) -> bool:
        """The coordinator has written its summary; the page with plots that follows is not waited for."""
        return self.files.summary.exists()

    def mark(self) -> int:
        """How far the run has come: 0 before the first round, r while round r is open, rounds + 1 when all are
        published."""
        output = self.output()
        opened = [int(found) for found in re.findall(r"^round (\d+) is open", output, re.MULTILINE)]
        last = max(opened, default=0)
        published = re.search(rf"^round {self.recipe.rounds}: (?!update)", output, re.MULTILINE)
        return self.recipe.rounds + 1 if published else last

    def finish(self, watch: Callable[[], None]) -> float:
        """Start everybody and serve until the end, also until nodes have left; the seconds it took until the summary
        was there.

        Raises:
            AssertionError: Somebody ended with an error, or there is no end.
        """
        started = time.monotonic()
        self.begin()

        def over() -> bool:
            watch()
            return self.ended

        self.wait(over)
        seconds = time.monotonic() - started
        # Nodes leave by themselves, also when they were away at the end.
        self.wait(lambda: all(home is None or home.poll() is not None for home in self.homes))
        return seconds

    def wait(self, done: Callable[[], object]) -> None:
        """Wait for something, as long as somebody works on it and nobody has ended with an error."""
        patience = Patience(lambda: [one for one in (self.leader, *self.homes) if one is not None], self.output)
        while not done():
            self.check_alive()
            patience.check()
            time.sleep(0.02)

    def found(self) -> dict[str, Any]:
        """The summary."""
        result: dict[str, Any] = json.loads(self.files.summary.read_text())
        return result

    def invited(self, server_round: int) -> list[str]:
        """Who takes part in a round: all homes."""
        return self.names

    def check(self, digest: str = "") -> str:
        """Every round has its homes' updates exactly once, and everybody ends with one digest; returns it."""
        summary, ledger = self.found(), open_ledger(self.files)
        try:
            rows, rounds = ledger.rounds(), range(1, self.recipe.rounds + 1)
            assert [row.round for row in rows] == list(rounds)
            for row in rows:
                names = self.invited(row.round)
                assert list(row.participants) == names, row
                assert [update.header.node for update in ledger.updates(row.round)] == names
            last = next(
                obj
                for obj in ledger.published_states()
                if obj.version == self.recipe.rounds and obj.base_version is None
            )
        finally:
            ledger.close()
        final: str = summary["final"]["digest"]
        assert final == last.digest and digest in ("", final), (final, last.digest, digest)
        output = self.output()
        for name in self.names:
            said = re.findall(rf"^{name}: version {self.recipe.rounds} ([0-9a-f]+)", output, re.MULTILINE)
            node = summary["nodes"].get(name, {})
            if node.get("model_version") == self.recipe.rounds:
                said.append(node["digest"])
            assert said and all(final.startswith(word) for word in said), (name, said, final, output[-3000:])
        return final

    def close(self) -> None:
        super().close()
        self.proxy.stop()

    def _job_text(self) -> str:
        recipe, merge = self.recipe, "refresh_every = 1\n" if self.recipe.schedule == "fresh" else ""
        kind = f'kind = "buffered"\nbuffer_size = {recipe.buffer_size}\n' if recipe.buffer_size else ""
        quorum = recipe.buffer_size or recipe.homes
        return f"""\
run = "{self.run}"
seed = {recipe.seed}

[model]
folder = "{self.workshop.model}"
schema_file = "{self.workshop.schema}"

[task]
kind = "text-classification"
labels = {list(LABELS)}
max_length = 16

[head]
start = "random"

[method]
name = "fedkrso"
rank = 8
num_seeds = 4
schedule = "{recipe.schedule}"
{merge}interval_steps = 2
steps = 8
batch_size = 4
learning_rate = 1e-3

[round]
{kind}rounds = {recipe.rounds}
min_nodes = {recipe.homes}
quorum = {quorum}
deadline_seconds = 300
finish_seconds = 60
chunk_bytes = {self.chunk_bytes}
{self._broker_text("coordinator")}"""

    def _node_text(self, index: int) -> str:
        return f"""\
node = "home-{index}"
run = "{self.run}"
model_folder = "{self.workshop.model}"
memory_budget = "1 GiB"
folder = "{self.node_folder(index)}"
threads = 1
compute_dtype = "float32"
micro_batch_size = 4
checkpointing = false
mapped_weights = false

[data]
source = "{self.workshop.texts(index)}"
{self._broker_text(f"home-{index}")}"""

    def _broker_text(self, user: str) -> str:
        from fedcore.config.sections import BrokerSection

        insecure = "insecure = true\n" if "insecure" in BrokerSection.__struct_fields__ else ""
        return f"""
[broker]
url = "{self.proxy.url}"
{insecure}{"" if self.qos else "qos = 0"}
username = "{user}"
password_file = "{self.folder / user}"
    """


class AtMostOnce(Tiny):
    """The same with MQTT's QoS 0: a broker keeps nothing for who is away, and what is lost nobody but fedkrso says
    again."""

    qos = 0


def undisturbed(folder: Path, workshop: Workshop, recipe: Recipe) -> tuple[str, list[float]]:
    """The digest of a run in which nothing goes wrong, and when it reached each mark, in seconds; made once for a
    recipe."""
    known = workshop.folder / f"undisturbed-{recipe.name}.json"
    if known.exists():
        digest, marks = json.loads(known.read_text())
        return digest, marks
    first = not workshop.traces.exists()
    tiny = Tiny(folder, workshop, recipe)
    try:
        started, marks = time.monotonic(), [0.0]
        tiny.begin()

        def over() -> bool:
            marks.extend([time.monotonic() - started] * (tiny.mark() + 1 - len(marks)))
            return tiny.ended

        tiny.wait(over)
        marks.append(time.monotonic() - started)
        digest = tiny.check()
        assert tiny.exit_codes(*filter(None, tiny.homes)) == [0] * recipe.homes, tiny.output()[-3000:]
        workshop.keep_traces(tiny.node_folder(0))
    finally:
        tiny.close()
    if first:
        # Tracing the model took most of the time: once more, for the marks that later runs will have.
        return undisturbed(folder.with_name(f"{folder.name}-again"), workshop, recipe)
    known.write_text(json.dumps([digest, marks]))
    return digest, marks
