# SPDX-License-Identifier: Apache-2.0
"""An operator's commands on their way into the coordinator's loop.

Anybody may ask from any thread; the loop alone obeys. What a command changes for good (paused, excluded nodes) and its
line in the event log are in the ledger before the operator hears of it, so that a coordinator that is resumed is as it
was left. To end a round is told when the round is published: a coordinator killed before that still has the round open,
with every update."""

from __future__ import annotations

import contextlib
import difflib
import queue
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from coordinator.rounds.events import Action, Answer, Command, EndRound, Exclude, Pause, Readmit, Report, Resume
from coordinator.rounds.machine import RoundMachine
from coordinator.store.ledger import Ledger
from coordinator.store.view import EventView, RunView
from fedcore.errors import ConfigError
from fedcore.fields.checked import clean_text
from fedcore.system.clocks import Clocks

__all__ = [
    "COMMANDS",
    "Answer",
    "Asked",
    "Command",
    "Commander",
    "Control",
    "EndRound",
    "Exclude",
    "Pause",
    "Readmit",
    "Report",
    "Resume",
    "command_of",
    "name_of",
    "refuse_all",
]

Commander = Callable[[Command, str], "Future[Answer]"]
"""Asks the coordinator's loop to obey a command, and says who gave it."""

COMMANDS: dict[str, type[Pause | Resume | EndRound | Exclude | Readmit]] = {
    "pause": Pause,
    "resume": Resume,
    "end_round": EndRound,
    "exclude": Exclude,
    "readmit": Readmit,
}


def command_of(name: str, node: str = "") -> Command:
    """A command from words.

    Args:
        name: One of `COMMANDS`.
        node: Which node, for those that are about one; empty for the others.

    Raises:
        ConfigError: There is no such command, or the node is missing or too much.

    Example:
        >>> command_of("exclude", "kitchen")
        Exclude(node='kitchen')
    """
    kind = COMMANDS.get(name)
    if kind is None:
        raise ConfigError(f"there is no command {clean_text(name)[:40]!r}", remedy=f"one of {', '.join(COMMANDS)}")
    if issubclass(kind, Exclude | Readmit):
        if not node:
            raise ConfigError(f"{name} needs a node")
        return kind(node)
    if node:
        raise ConfigError(f"{name} is about no node")
    return kind()


def name_of(command: Command) -> str:
    """The word for a command.

    Example:
        >>> name_of(EndRound())
        'end_round'
    """
    return next((name for name, kind in COMMANDS.items() if isinstance(command, kind)), "report")


@dataclass(frozen=True)
class Asked:
    """A command, who gave it, and where the answer is awaited."""

    command: Command
    by: str
    answer: Future[Answer] = field(default_factory=Future)

    def tell(self, answer: Answer) -> None:
        """Answer, unless nobody waits any more."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_result(answer)


class Control:
    """Obeys; belongs to the coordinator's loop.

    Args:
        ledger: Remembers what was paused and excluded in an earlier life of the run.
        machine: Decides.
        view: Which nodes are known.
        clocks: For deadlines, and for people.
        do: Carries out what the machine says.
        show: Shows that something changed.
        tell: Shows an event that the ledger has.
    """

    def __init__(
        self,
        ledger: Ledger,
        machine: RoundMachine,
        view: RunView,
        clocks: Clocks,
        *,
        do: Callable[[Action], None],
        show: Callable[[], None],
        tell: Callable[[EventView], None],
    ) -> None:
        self._ledger, self._machine, self._view, self._clocks = ledger, machine, view, clocks
        self._do, self._show, self._tell = do, show, tell
        machine.paused = ledger.fact("paused", bool) or False
        machine.excluded = set(ledger.fact("excluded", list[str]) or ())

    def obey(self, asked: Asked) -> None:
        """Carry a command out and answer it."""
        try:
            answer = self._obey(asked.command, asked.by)
        except BaseException:
            asked.tell(Answer(False, "the coordinator stopped before it was done"))
            raise
        self._show()
        asked.tell(answer)

    def _obey(self, command: Command, by: str) -> Answer:
        now, machine, name = self._clocks.wall(), self._machine, name_of(command)
        number, unknown = machine.round, self._unknown(command)
        actions: list[Action] = [Answer(False, unknown)] if unknown else machine.handle(command, self._clocks.steady())
        answer = actions[0]
        assert isinstance(answer, Answer), "a command is answered first"
        node = command.node if isinstance(command, Exclude | Readmit) and not unknown else ""
        text = clean_text(f"{name} by {by}: {'' if answer.done else 'refused: '}{answer.text}")
        facts = {"paused": machine.paused, "excluded": sorted(machine.excluded)} if answer.done else {}
        self._ledger.put_command(facts, now, node, text, number)
        self._tell(EventView(now, "command", node, number, text))
        for action in actions[1:]:
            self._do(action)
        return answer

    def _unknown(self, command: Command) -> str:
        """Why a node cannot be meant; empty if it can. A misspelt one would be excluded for nothing."""
        if not isinstance(command, Exclude) or command.node in self._view.nodes or command.node in self._machine.seen:
            return ""
        near = difflib.get_close_matches(command.node, self._view.nodes, 1)
        return f"no node {clean_text(command.node)[:64]!r} was heard in this run" + (
            f"; {near[0]!r} was" if near else ""
        )


def refuse_all(events: queue.Queue[Any]) -> None:
    """Answer what still waits in an ended loop's queue: nobody waits for a word that will not come."""
    with contextlib.suppress(queue.Empty):
        while True:
            event = events.get_nowait()
            if isinstance(event, Asked):
                event.tell(Answer(False, "the coordinator has ended"))
