# SPDX-License-Identifier: Apache-2.0
"""A run, led from a program: what `fedkrso coordinator run` and `resume` call, and what people build on."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from coordinator.job import EvaluationSection, Job
from coordinator.messages.senders import Senders
from coordinator.objects.shelf import open_store
from coordinator.reports.result import Result
from coordinator.reports.summary import about, summary_of, write_report, write_summary
from coordinator.run.control import Answer, Command, Commander
from coordinator.run.examining import examined, require_model
from coordinator.run.going_on import led_alone, with_rounds
from coordinator.run.prepare import prepare
from coordinator.run.service import Service
from coordinator.store.folder import RunFolder, stored_job, write_job, written
from coordinator.store.ledger import RoundRow
from coordinator.store.places import Database, begin_in, open_ledger, require_package
from coordinator.store.tables import TableLedger
from coordinator.store.view import RunView
from coordinator.store.viewfile import ViewFile
from coordinator.terminal.telling import Teller
from fedcore.config.broker import mqtt_settings
from fedcore.config.data import data_section, importable
from fedcore.config.passwords import read_password
from fedcore.config.reading import load_config
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError, RunError
from fedcore.system.logs import Line
from fedcore.transport.base import CONNECT_SECONDS
from fedcore.transport.client import client_id
from fedcore.transport.mqtt import MqttTransport
from fedcore.transport.reach import reach
from fedcore.wire.identity import load_signing_key
from fedcore.worker.imported import model_folder

__all__ = ["Coordinator", "Screen"]


class Screen(Protocol):
    """What shows a run while it goes on, beside what the caller is told: the dashboard is one."""

    def observe(self, view: RunView) -> None:
        """The view changed; called in the coordinator's loop."""
        ...

    def start(self, view: RunView, command: Commander, ledger: Path) -> None:
        """The run begins; `command` asks it to obey an operator."""
        ...


class Coordinator:
    """Leads one run: announces rounds, adds updates up exactly, publishes, evaluates, and ends with a report.

    Nothing is on disk before `run` (or `with`); everything that decides the model is in the run's folder afterwards,
    so a program that was killed goes on with `Coordinator.resume`, to the same digest.

    Args:
        job: What the run is.
        runs: Folder of runs; the run gets one of its own in it.
        evaluation: Held-out data in place of the job's: rows (dicts), a `datasets.Dataset`, a path, or a function.
        metrics: What is measured on it beside what the task measures: names, or functions of predictions and targets
            that another process can import.
        on_round: Called with each round once it is published, and measured where it is to be: what nodes measure of it
            (`row.nodes`) comes with the next round's updates.
        on_event: Called with each thing that happens, as the log would print it.
        screens: What else shows the run.

    Raises:
        FedkrsoError: The job's model folder or broker settings are wrong.

    Example:
        >>> from fedcore.errors import ConfigError
        >>> try:
        ...     Coordinator.from_file("nowhere/job.toml")
        ... except ConfigError as error:
        ...     print(error.one_line())
        nowhere/job.toml: no such file
    """

    def __init__(
        self,
        job: Job,
        *,
        runs: Path | str = "runs",
        evaluation: object = None,
        metrics: Sequence[str | Callable[..., float]] = (),
        on_round: Callable[[RoundRow], None] = lambda row: None,
        on_event: Callable[[Line], None] = lambda line: None,
        screens: tuple[Screen, ...] = (),
    ) -> None:
        self._job, self._evaluation, self._metrics, self._place = job, evaluation, _names(metrics), "job"
        self.folder = RunFolder(Path(runs) / job.run)
        self._on_round, self._on_event, self._screens = on_round, on_event, screens
        self._service: Service | None = None
        self._ledger: TableLedger | None = None
        self._resumed = self._claimed = self._stopped = False
        self._rounds: int | None = None

    @classmethod
    def from_file(cls, path: Path | str, **options: Any) -> Coordinator:
        """Of a job file.

        Args:
            path: JOB.toml.
            options: As of the class.

        Raises:
            ConfigError: The file is wrong; its place is `file: key`.
        """
        coordinator = cls(load_config(Path(path), Job), **options)
        coordinator._place = str(path)
        coordinator.check()
        return coordinator

    @classmethod
    def resume(cls, run: str, *, runs: Path | str = "runs", rounds: int | None = None, **options: Any) -> Coordinator:
        """Of a run that was begun before: same rounds, same digest.

        Args:
            run: Its name.
            runs: As of the class.
            rounds: How many it shall have in all, where that is more than it has: a finished run goes on from its last
                state. None for as many as its job says.
            options: As of the class.

        Raises:
            RunError: There is no such run, or another version of this program began it.
        """
        coordinator = cls(stored_job(Path(runs) / run), runs=runs, **options)
        coordinator._resumed, coordinator._rounds = True, rounds
        return coordinator

    @property
    def job(self) -> Job:
        """What the run is."""
        return self._job

    def show_on(self, screen: Screen) -> None:
        """Have the run shown on one more screen; before `run`."""
        self._screens = (*self._screens, screen)

    def check(self) -> None:
        """Look at what the job names on this machine.

        Raises:
            FedkrsoError: No such model folder, or broker settings that cannot be used.
        """
        require_model(self._job, self._place)
        mqtt_settings(self._job.broker, "check")
        if self._job.objects is not None:
            open_store(self._job.objects)
        if (section := self._job.ledger) is not None:
            require_package()
            if section.password_file is not None:
                read_password(Path(section.password_file), "ledger.password_file")

    def examine(self) -> tuple[str, ...]:
        """Look at all that the job names, as its workers will: rows, labels, metrics, trained tensors; a line for each.

        Raises:
            FedkrsoError: What the run would end with, in the same words.
        """
        self.check()
        return examined(self._job, self._place)

    def __enter__(self) -> Coordinator:
        with written(self.folder):
            self._claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self) -> Result:
        """Serve until the run has ended, or `stop` was called.

        Raises:
            FedkrsoError: The run cannot go on. What was acknowledged is in its folder; `resume` continues.
        """
        finished_too = not self._resumed or self._rounds is not None
        with written(self.folder):
            self._claim()
            with led_alone(self._job.run, self.folder, finished_too=finished_too):
                return self._run()

    def _run(self) -> Result:
        ledger = self._ledger = self._opened_ledger()
        try:
            if self._rounds is not None:
                self._job = with_rounds(self._job, self._rounds, self.folder, ledger)
            view = self._served(ledger)
            told = about(self._job, ledger, view.rows, self.folder.root.parent)
            summary = summary_of(view, ledger.counts("refused"), task_of(self._job.task).headline, told)
        finally:
            self._ledger = None
            ledger.close()
        write_summary(self.folder.summary, summary)
        write_report(self.folder.report, summary)
        return Result(self.folder, summary, tuple(view.rows), finished=view.phase == "finished")

    def stop(self) -> None:
        """Have `run` return soon, from any thread; the open round stays open, and `resume` goes on with it."""
        self._stopped = True
        if self._service is not None:
            self._service.stop()
        if (ledger := self._ledger) is not None:
            ledger.give_up()

    def command(self, command: Command, by: str = "program") -> Answer:
        """Obey an operator, while the run goes on: pause, resume, end a round, exclude a node
        (`coordinator.run.control`).

        Args:
            command: What is to be done.
            by: Who says so, for the event log.

        Raises:
            RunError: The run has not begun.
        """
        if self._service is None:
            raise RunError("the run has not begun", place=self._job.run, remedy="call run() in another thread")
        return self._service.command(command, by).result()

    def _claim(self) -> None:
        """Take the run's folder: a new one, or the one that is resumed."""
        if self._claimed:
            return
        self.check()
        if not self._resumed:
            if self.folder.has_ledger():
                runs = self.folder.root.parent
                raise RunError(
                    f"run {self._job.run!r} is already there",
                    place=str(self.folder.root),
                    remedy=f"fedkrso coordinator resume {self._job.run} --runs {runs}, or another name",
                )
            self.folder.root.mkdir(parents=True, exist_ok=True)
            self._job = msgspec.structs.replace(self._job, evaluation=self._measured())
            write_job(self.folder, self._job)
        self._claimed = True

    def _opened_ledger(self) -> TableLedger:
        section, folder = self._job.ledger, self.folder
        if section is not None and not folder.has_ledger():
            begin_in(folder, Database(url=section.url, password_file=section.password_file), self._job.run)
        return open_ledger(folder, leads=True, tell=self._tell_ledger)

    def _tell_ledger(self, words: str, away: bool) -> None:
        if self._service is None:
            self._on_event(Line(words, event="ledger", level="warning"))
        else:
            self._service.tell("ledger", words, kept=not away)

    def _measured(self) -> EvaluationSection | None:
        """The job's `[evaluation]`, with what the program gave in place of it."""
        section = self._job.evaluation
        if self._evaluation is not None:
            before = section or EvaluationSection()
            data = data_section(self._evaluation, before.data, self.folder.root / "evaluation.jsonl")
            where = before.where if before.here else "both"
            section = msgspec.structs.replace(before, **msgspec.structs.asdict(data), where=where)
        if self._metrics and section is None:
            raise ConfigError("metrics without held-out data", place="evaluation", remedy="give evaluation=rows")
        if section is None or not self._metrics:
            return section
        return msgspec.structs.replace(section, metrics=(*section.metrics, *self._metrics))

    def _model_folder(self) -> Path:
        text, cache = self._job.model.folder, self.folder.models
        return model_folder(text, cache, place="model.folder", tell=self._tell_work)

    def _tell_work(self, line: str) -> None:
        self._on_event(Line(line, event="model"))

    def _served(self, ledger: TableLedger) -> RunView:
        job, folder = self._job, self.folder
        if ledger.fact("started_at", float) is None:
            ledger.put_fact("started_at", time.time())
        first = RunView(job.run, job.method.name, job.round.rounds, phase="preparing", rows=ledger.rounds())
        first.phases = job.phases
        with ViewFile(folder.view, first) as picture:
            self._on_event(
                Line(f"connecting to {job.broker.url}, for at most {CONNECT_SECONDS:.0f} s", event="connecting")
            )
            # A look first: whoever mistyped a password hears of it before the model has been looked at for a minute.
            reach(mqtt_settings(job.broker, client_id(job.full_name, "look")), CONNECT_SECONDS)
            prepared = prepare(job, self._model_folder(), folder, ledger, self._tell_work)
            # Spreads reconnects; decides nothing in the model.
            jitter = random.Random(secrets.randbits(64))  # noqa: S311
            transport = MqttTransport(mqtt_settings(job.broker, client_id(job.full_name, "coordinator")), jitter)
            trust = job.trust
            key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
            senders = Senders(job.run, None if trust.enrolled is None else Path(trust.enrolled))
            teller = Teller(self._on_round, self._on_event, job.evaluation)
            observers = [teller.observe, *(screen.observe for screen in self._screens), picture.show]

            def observe(view: RunView) -> None:
                for show in observers:
                    show(view)

            self._service = Service(prepared, folder, ledger, transport, senders=senders, key=key, observer=observe)
            if self._stopped:
                self._service.stop()
            for screen in self._screens:
                screen.start(self._service.view, self._service.command, folder.ledger)
            view = self._service.run()
            picture.stopped = view.phase != "finished"
            return view


def _names(metrics: Sequence[str | Callable[..., float]]) -> tuple[str, ...]:
    """As a job says them: the evaluation process imports what it measures with."""
    names = []
    for metric in metrics:
        name = metric if isinstance(metric, str) else importable(metric)
        if name is None:
            raise ConfigError(
                f"{getattr(metric, '__qualname__', metric)!r} cannot be imported by another process",
                place="metrics",
                remedy="define it in a module, outside of functions and of the program that runs",
            )
        names.append(name)
    return tuple(names)
