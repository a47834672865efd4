# SPDX-License-Identifier: Apache-2.0
"""The worker that answers, seen from the event loop: started under the budget when somebody asks, fed by the queue's
machine, watched, and ended when training wants its memory. All of it happens in the loop's thread."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edge_client.memory.monitor import Reading
from edge_client.process.deaths import ending, killed_for_memory
from edge_client.process.held import HeldWorker
from edge_client.serving import queueing as q
from edge_client.serving.memory import ServingMemory
from edge_client.serving.refusals import Refusal, refusal_of
from edge_client.serving.source import Source
from edge_client.serving.ticket import Ticket
from fedcore.errors import DataError, ExactnessError
from fedcore.system.logs import Line
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Event as WorkerEvent
from fedcore.worker.messages import Failed
from fedcore.worker.process import WorkerDied
from fedcore.worker.serving import Classified, Classify, Generate, Generated, Held, Loaded, Stop, Token

__all__ = ["Hosting", "Standing"]

_TICK_SECONDS, _SAMPLE_SECONDS = 0.25, 1.0
# An agent that has nothing to train lets its worker go within a tick and what the worker takes to end.
_ROOM_SECONDS = 30.0
_RETRY_SECONDS = 30
# Training may be in the middle of writing what a load found half there.
_RELOAD_SECONDS = 1.0
_TRAINING = "this node trains now, and its memory holds one model at a time"


@dataclass(frozen=True)
class Standing:
    """How things stand, for `/health` and `/v1/models`."""

    state: q.State
    trains: bool
    held: Held | None
    """What the worker holds of the run, or would load now."""
    loaded: Loaded | None
    """What the worker last said of it; None before the first load."""
    waiting: int
    answering: bool
    used_bytes: int
    limit_bytes: int


class Hosting:
    """One model, answered from by one worker at a time.

    Args:
        source: What is served.
        memory: What the worker may have.
        say: Gets one line for each thing that happens.
        clock: Steady seconds.
    """

    def __init__(
        self, source: Source, memory: ServingMemory, say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self.source, self._memory, self._say, self._clock = source, memory, say, clock
        self._queue = q.AnswerQueue(memory.section.most_waiting)
        self._tickets: dict[int, Ticket] = {}
        self._asked = 0
        self._worker: HeldWorker | None = None
        self._last: Reading | None = None
        self._held: Held | None = None
        self._loaded: Loaded | None = None
        self._room_until = self._grace_until = self._sample_at = 0.0
        self._ending: list[asyncio.Future[None]] = []
        self._stopped = False

    # For the application

    @property
    def standing(self) -> Standing:
        """How things stand now."""
        queue = self._queue
        return Standing(
            state=queue.state,
            trains=queue.making_room is not None,
            held=self._held if queue.state == "ready" else self.source.held(),
            loaded=self._loaded,
            waiting=len(queue.waiting),
            answering=queue.current is not None,
            used_bytes=0 if self._last is None else self._last.used_bytes,
            limit_bytes=self._memory.limit_bytes,
        )

    def ask(self, command: Generate | Classify) -> Ticket:
        """Get in line. What comes of it is told to the ticket."""
        self._asked += 1
        if isinstance(command, Generate):
            command = msgspec.structs.replace(command, answer=self._asked)
        ticket = Ticket(self._asked, command, self._left)
        self._tickets[ticket.answer] = ticket
        self._feed(q.Asked(ticket.answer))
        return ticket

    async def run(self) -> None:
        """Watch disk, memory and training until cancelled; then end the worker."""
        try:
            while True:
                self._turn()
                await asyncio.sleep(_TICK_SECONDS)
        finally:
            self._stopped = True
            self._end_worker()
            await asyncio.gather(*self._ending, return_exceptions=True)

    # The loop's turn

    def _turn(self) -> None:
        now, queue = self._clock(), self._queue
        trains = self._memory.trains_now
        if trains and queue.making_room is None:
            self._grace_until = now + self._memory.section.grace_seconds
            self._feed(q.MakeRoom(_training()))
        elif not trains and queue.making_room is not None:
            self._feed(q.RoomFree())
        if queue.making_room is not None and now >= self._grace_until:
            self._feed(q.Overdue())
        if queue.state == "waiting":
            self._try_room(now)
        if self._worker is not None and queue.state == "ready" and _newer(self.source.held(), self._held):
            self._feed(q.NewState())
        if now >= self._sample_at:
            self._sample_at = now + _SAMPLE_SECONDS
            self._sample(now)

    def _try_room(self, now: float) -> None:
        if self._ending:
            # Ours has not ended yet: two would not fit.
            return
        if self._queue.making_room is None and self._memory.take():
            self._feed(q.RoomGranted())
        elif self._queue.making_room is not None or now >= self._room_until:
            self._memory.leave()
            self._feed(q.RoomRefused(_training()))

    def _sample(self, now: float) -> None:
        worker = self._worker
        used = worker.sample() if worker is not None else None
        self._last = reading = self._memory.reading(now, used.total_bytes if used is not None else None)
        if worker is None:
            return
        if reading.used_bytes > self._memory.limit_bytes:
            self._say(Line(f"memory: {reading.described()}; ending the worker", event="memory", level="warning"))
            worker.kill()
            return
        wanted, group = self._memory.worker_bytes(), worker.memory_group
        if (used.total_bytes if used is not None else 0) < wanted:
            group.set_limit(wanted)

    # What the machine says

    def _feed(self, event: q.Event) -> None:
        for action in self._queue.handle(event):
            self._do(action)

    def _do(self, action: q.Action) -> None:
        match action:
            case q.AskRoom():
                self._room_until = self._clock() + _ROOM_SECONDS
                self._try_room(self._clock())
            case q.Start():
                self._start_worker()
                self._load()
            case q.Load():
                self._load()
            case q.Give(answer):
                assert self._worker is not None
                self._worker.send(self._tickets[answer].command)
            case q.StopAnswer(answer):
                if self._worker is not None:
                    self._worker.send(Stop(answer))
            case q.Refuse(answer, refusal):
                self._tell(answer, refusal)
            case q.EndWorker():
                self._end_worker()

    def _start_worker(self) -> None:
        source, loop = self.source, asyncio.get_running_loop()

        def hear(event: WorkerEvent | WorkerDied) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._heard, worker_of, event)

        # The thread that hears may be quicker than the constructor: it is told which worker it hears by this object.
        worker_of = object()
        self._present = worker_of
        self._worker = HeldWorker(
            hear,
            source.folder / "worker.log",
            self._memory.worker_bytes(),
            f"fedkrso-serve-{os.getpid()}",
            source.threads,
            "tuned",
        )

    def _load(self) -> None:
        assert self._worker is not None
        self._held = self.source.held()
        self._worker.send(self.source.load(self._held, self._memory.worker_bytes()))

    def _end_worker(self) -> None:
        worker, self._worker, self._present = self._worker, None, None
        if worker is None:
            self._memory.leave()
            return
        # It keeps nothing that could be lost, and training waits.
        worker.kill()
        ended = asyncio.get_running_loop().run_in_executor(None, worker.stop)
        self._ending.append(ended)

        def gone(future: asyncio.Future[None]) -> None:
            self._ending.remove(future)
            self._memory.leave()

        ended.add_done_callback(gone)

    # What the worker says

    def _heard(self, worker: object, event: WorkerEvent | WorkerDied) -> None:
        if worker is not self._present or self._stopped:
            return
        match event:
            case Loaded():
                self._loaded = event
                self._say(Line(f"answers from {_words(self._held)}", event="loaded"))
                self._feed(q.Loaded())
            case Token(answer):
                self._tell(answer, event)
            case Generated() | Classified():
                self._answered(event)
            case Failed():
                self._failed(event)
            case WorkerDied():
                self._died(event)

    def _answered(self, event: Generated | Classified) -> None:
        answer = self._queue.current
        if answer is not None:
            self._tell(answer, event)
        self._feed(q.Done())

    def _failed(self, event: Failed) -> None:
        error = error_of(event)
        if self._queue.state == "loading":
            refusal = Refusal(503, error.one_line(), code="cannot_load", retry_after_seconds=_RETRY_SECONDS)
            changed = isinstance(error, ExactnessError)
            if changed:
                asyncio.get_running_loop().call_later(_RELOAD_SECONDS, self._retry, self._present, refusal)
            else:
                self._say(Line(f"cannot load: {error.one_line()}", event="failed", level="error"))
                self._feed(q.LoadFailed(refusal))
            return
        if not isinstance(error, DataError):
            self._say(Line(f"an answer failed: {error.one_line()}", event="failed", level="warning"))
        if self._queue.current is not None:
            self._tell(self._queue.current, refusal_of(error))
        self._feed(q.Done())

    def _retry(self, worker: object, refusal: Refusal) -> None:
        if worker is self._present and self._queue.state == "loading":
            self._feed(q.LoadFailed(refusal, changed=True))

    def _died(self, event: WorkerDied) -> None:
        kills = self._worker.memory_group.kills() if self._worker is not None else None
        by_memory = killed_for_memory(event, kills, self._last, self._memory.limit_bytes)
        words = f"the worker {'was killed for its memory' if by_memory else 'ended'} ({ending(event)})"
        last = event.tail.splitlines()[-1:] if event.returncode > 0 else []
        self._say(Line(": ".join([words, *last]), event="worker_died", level="error"))
        self._feed(q.Died(Refusal(503, words, code="worker_died", retry_after_seconds=_RETRY_SECONDS)))

    # Tickets

    def _tell(self, answer: int, news: Token | Generated | Classified | Refusal) -> None:
        ticket = self._tickets.get(answer)
        if ticket is None:
            return
        if not isinstance(news, Token):
            del self._tickets[answer]
        ticket.tell(news)

    def _left(self, answer: int) -> None:
        if self._tickets.pop(answer, None) is not None:
            self._feed(q.Left(answer))


def _training() -> Refusal:
    return Refusal(503, _TRAINING, code="training", retry_after_seconds=_RETRY_SECONDS)


def _newer(disk: Held | None, held: Held | None) -> bool:
    """Whether another state lies on the disk than the worker holds."""
    return disk is not None and (held is None or (disk.version, disk.digest) != (held.version, held.digest))


def _words(held: Held | None) -> str:
    if held is None:
        return "the model as it lies in its folder"
    return f"version {held.version} of run {held.run}, digest {held.digest[:12]}"
