# SPDX-License-Identifier: Apache-2.0
"""The server at work: one loop that takes wishes, looks after processes, and does what the queue says.

Nothing that a run does can end this loop: runs are processes, and what they leave is read as something that may be
damaged."""

from __future__ import annotations

import queue
import secrets
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import msgspec

from coordinator.job import Job
from coordinator.run.examining import require_model
from coordinator.server.keeping import Kept
from coordinator.server.processes import Processes
from coordinator.server.queueing import Action, Begin, End, Ending, Entry, Keep, Kill, Queue
from coordinator.server.rows import NodeRow, Rows, RunRow
from coordinator.server.settings import ServerFiles, ServerSettings
from coordinator.store.folder import RunFolder, stored_job, write_job
from fedcore.errors import ConfigError, FedkrsoError, ModelError, RunError
from fedcore.system.durable import flush_folder
from fedcore.system.logs import Level, Line

__all__ = ["Fleet", "Server"]

T = TypeVar("T")
_LOOK_SECONDS = 0.5


class Fleet:
    """What tells nodes of runs; this one tells nobody."""

    def begin(self) -> None:
        """The server begins."""

    def announce(self, entries: list[Entry]) -> None:
        """The runs that nodes are to take part in, in their order; called again and again with the same ones."""

    def over(self, entry: Entry) -> None:
        """A run has ended: nothing of it is to be told any more."""

    def nodes(self) -> list[NodeRow]:
        """The nodes that were heard of."""
        return []

    def end(self) -> None:
        """The server ends; its runs go on."""


class Server:
    """Leads a queue of runs until it is stopped. Runs outlive it: their processes go on, and the next server finds
    them.

    Args:
        settings: The server file.
        kept: The queue on the disk.
        processes: Of the runs.
        fleet: Tells nodes.
        say: Gets a line for each thing that happens.
        clock: Unix seconds.
    """

    def __init__(
        self,
        settings: ServerSettings,
        kept: Kept,
        processes: Processes,
        fleet: Fleet,
        say: Callable[[Line], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._kept, self._processes, self._fleet = settings, kept, processes, fleet
        self._say, self._clock = say, clock
        self.files = ServerFiles(Path(settings.runs))
        self._queue = Queue(settings.at_once, settings.tries, kept.entries())
        self._rows = Rows(self.files.runs)
        self._wishes: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._stopping = False

    def run(self) -> None:
        """Serve until `stop`."""
        self._fleet.begin()
        try:
            for entry in self._queue.active:
                self._found_again(entry)
            while not self._stopping:
                self._turn()
        finally:
            self._fleet.end()

    def stop(self) -> None:
        """Have `run` return at its next turn; from any thread, or from a signal handler. Runs go on."""
        self._stopping = True
        self._wishes.put(None)

    # Wishes: from any thread, done in the loop

    def submit(self, job: Job, by: str) -> Future[Entry]:
        """Queue a run.

        Args:
            job: What it is; its broker, keys and fleet are the server's.
            by: Who asks.
        """
        return self._wish(lambda: self._submit(job, by))

    def end_run(self, run: str, by: str, *, others: bool) -> Future[str]:
        """Stop a run for good.

        Args:
            run: Its name.
            by: Who asks.
            others: Whether they may stop what somebody else has submitted.
        """
        return self._wish(lambda: self._end_run(run, by, others))

    def rows(self) -> Future[list[RunRow]]:
        """All runs, the last submitted first."""
        return self._wish(self._all_rows)

    def nodes(self) -> Future[list[NodeRow]]:
        """All nodes of the fleet, by name."""
        return self._wish(self._fleet.nodes)

    def _wish(self, act: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(act())
            except (ConfigError, ModelError, RunError) as error:
                future.set_exception(error)
            except BaseException as error:
                # What cannot be kept must not be acted on: the server ends, and its runs go on.
                future.set_exception(error)
                raise

        self._wishes.put(do)
        return future

    def _turn(self) -> None:
        try:
            wish = self._wishes.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            wish = None
        if wish is not None:
            wish()
        self._look()
        self._do(self._queue.tick(self._clock()))
        self._fleet.announce([entry for entry in self._queue.active if entry.announced])

    def _look(self) -> None:
        for entry in self._queue.active:
            if entry.state != "waiting" and not self._processes.alive(entry.run):
                self._ended(entry, self._processes.ended(entry.run))

    def _ended(self, entry: Entry, ending: Ending) -> None:
        actions = self._queue.ended(entry.run, ending, self._clock())
        new = self._queue.entries[entry.run]
        words = {"waiting": f"is begun again: {new.words}", "finished": f"is finished after {new.rounds} rounds"}
        text = words.get(new.state, f"{new.state}: {new.words}")
        self._tell(new, f"{entry.run} {text}", "info" if new.state in ("finished", "stopped") else "warning")
        self._do(actions)
        if new.ended:
            self._fleet.over(new)

    def _found_again(self, entry: Entry) -> None:
        """What an earlier server began: its process is found, or it is looked at as one that has ended."""
        if entry.state == "waiting":
            return
        if self._processes.alive(entry.run):
            self._tell(entry, f"{entry.run} still runs, and goes on")
            if entry.state == "stopping":
                self._processes.end(entry.run)
        else:
            found = self._processes.ended(entry.run)
            # It ended with the server, or while nobody looked: that says nothing against it.
            kind = found.kind if found.kind == "finished" else "interrupted"
            self._ended(entry, Ending(kind, found.words, found.rounds))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Keep(entry):
                    self._kept.keep(entry)
                case Begin(entry):
                    self._begin(entry)
                case End(entry):
                    # Nodes first: who is told that it is over does not wait for its coordinator.
                    self._fleet.announce([other for other in self._queue.active if other.announced])
                    self._tell(entry, f"{entry.run} is {entry.words}")
                    self._processes.end(entry.run)
                case Kill(entry):
                    self._tell(entry, f"{entry.run} has not ended, and is killed", "warning")
                    self._processes.end(entry.run, signal.SIGKILL)

    def _begin(self, entry: Entry) -> None:
        try:
            folder = RunFolder(self.files.runs / entry.run)
            job = stored_job(folder.root)
            write_job(folder, msgspec.structs.replace(job, broker=self._settings.broker_of(entry.slot)))
            self._processes.begin(entry.run)
            again = f", try {entry.tries + 1}" if entry.tries else ""
            self._tell(entry, f"{entry.run} begins{again}")
        except (FedkrsoError, OSError) as error:
            words = error.one_line() if isinstance(error, FedkrsoError) else f"cannot be started: {error}"
            self._ended(entry, Ending("hopeless" if isinstance(error, RunError) else "died", words, entry.rounds))

    # What wishes do

    def _submit(self, job: Job, by: str) -> Entry:
        folder = RunFolder(self.files.runs / job.run)
        if job.run in self._queue.entries or folder.job.exists() or folder.has_ledger():
            raise RunError(f"run {job.run!r} is already there", place=str(folder.root), remedy="give it another name")
        own = self._settings
        job = msgspec.structs.replace(job, broker=own.broker, trust=own.trust, fleet=own.fleet)
        require_model(job, "the job")
        folder.root.mkdir(parents=True, exist_ok=True)
        write_job(folder, job)
        flush_folder(folder.root)
        # In the queue last: what is there has its job.
        actions = self._queue.submit(job.run, secrets.token_hex(16), by, self._clock())
        self._tell(self._queue.entries[job.run], f"{job.run} is submitted by {by}")
        self._do(actions)
        return self._queue.entries[job.run]

    def _end_run(self, run: str, by: str, others: bool) -> str:
        entry = self._queue.entries.get(run)
        if entry is not None and entry.by != by and not others:
            raise RunError(f"run {run!r} was submitted by {entry.by}", remedy="an owner can stop it")
        self._do(self._queue.stop(run, by, self._clock()))
        new = self._queue.entries[run]
        if new.ended:
            self._fleet.over(new)
        return f"{run} is {'stopped' if new.ended else 'being stopped'}"

    def _all_rows(self) -> list[RunRow]:
        entries = sorted(self._queue.entries.values(), key=lambda entry: -entry.number)
        nodes = self._fleet.nodes()
        members = {entry.run: frozenset(node.node for node in nodes if node.run == entry.run) for entry in entries}
        return [self._rows.row(entry, members[entry.run]) for entry in entries]

    def _tell(self, entry: Entry, text: str, level: Level = "info") -> None:
        self._say(Line(text, event=f"run_{entry.state}", level=level, about=entry.run))
