# SPDX-License-Identifier: Apache-2.0
"""One person at a terminal who asks a worker, without a server: started under the budget, loaded, asked, ended."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from types import TracebackType

from edge_client.process.deaths import ending, killed_for_memory
from edge_client.process.held import HeldWorker
from edge_client.serving.memory import ServingMemory
from edge_client.serving.start import Service
from fedcore.config.generation import GenerationOptions
from fedcore.errors import DataError, OutOfMemory, WorkerError
from fedcore.worker.failures import error_of
from fedcore.worker.messages import Event, Failed
from fedcore.worker.process import WorkerDied
from fedcore.worker.serving import ChatMessage, Generate, Generated, Loaded, Stop, Token

__all__ = ["Asking"]

_TRAINING = "this node trains or serves now, and its memory holds one model at a time"


class Asking:
    """A worker that answers, for as long as the context lasts.

    Args:
        service: A node's or a model folder's.

    Raises:
        WorkerError: On entering: training or a server has the node's memory.
        FedkrsoError: On entering: the model cannot be loaded.
    """

    def __init__(self, service: Service) -> None:
        self._source, self._service = service.source, service
        self._memory = ServingMemory.of(service.budget_bytes, service.section, service.node_folder)
        self._events: queue.Queue[Event | WorkerDied] = queue.Queue()
        self._worker: HeldWorker | None = None
        self._answer = 0
        self.context_tokens = 0
        """Tokens of conversation and answer together, at most."""
        self.last: Generated | None = None
        """How the last answer ended; None while one is given."""

    def __enter__(self) -> Asking:
        if not self._memory.take():
            self._memory.leave()
            raise WorkerError(
                _TRAINING, place=str(self._service.node_folder), remedy="try again when the round is over"
            )
        try:
            self._load()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ask(
        self,
        messages: Sequence[ChatMessage],
        options: GenerationOptions,
        *,
        max_tokens: int | None = None,
        json_schema: str = "",
    ) -> Iterator[str]:
        """The answer to a conversation, as it comes; `last` says how it ended. Closed half way, or left by an
        exception, it is stopped.

        Args:
            messages: They end with the user's.
            options: How to answer; its length is `max_tokens`'.
            max_tokens: Of the answer; None: as many as fit, up to 512.
            json_schema: What the answer must meet; empty: nothing.

        Raises:
            FedkrsoError: The conversation is too long, or the worker failed.
        """
        assert self._worker is not None, "asked within the context"
        if self._memory.trains_now:
            raise WorkerError("a round begins, and this node's memory is for training now")
        self._answer, self.last = self._answer + 1, None
        self._worker.send(
            Generate(
                answer=self._answer,
                messages=tuple(messages),
                max_tokens=max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                seed=options.seed,
                stop=options.stop,
                json_schema=json_schema,
            )
        )
        try:
            while self.last is None:
                event = self._next()
                if isinstance(event, Token):
                    yield event.text
                elif isinstance(event, Generated):
                    self.last = event
        except (GeneratorExit, KeyboardInterrupt):
            self._stop()
            raise

    def _stop(self) -> None:
        """Have the worker stop this answer, and hear it out."""
        assert self._worker is not None
        self._worker.send(Stop(self._answer))
        while not isinstance(event := self._events.get(), Generated | Failed | WorkerDied):
            pass
        if isinstance(event, WorkerDied):
            self._events.put(event)

    def _load(self) -> None:
        held = self._source.held()
        if self._service.node and held is None:
            raise DataError(
                "this node holds nothing of its run yet",
                place=str(self._service.node_folder),
                remedy="run it until it has fetched a published state, or give --model",
            )
        self._worker = HeldWorker(
            self._events.put,
            self._source.folder / "worker.log",
            self._memory.worker_bytes(),
            f"fedkrso-ask-{os.getpid()}",
            self._source.threads,
            "tuned",
        )
        self._worker.send(self._source.load(held, self._memory.worker_bytes()))
        loaded = self._next()
        assert isinstance(loaded, Loaded)
        if loaded.kind != "chat":
            raise DataError("this model says labels or scores, not sentences", remedy="fedkrso try, or /v1/classify")
        self.context_tokens = loaded.context_tokens

    def _next(self) -> Event:
        """The worker's next word; what it refuses is raised here."""
        event = self._events.get()
        if isinstance(event, Failed):
            raise error_of(event)
        if isinstance(event, WorkerDied):
            kills = self._worker.memory_group.kills() if self._worker is not None else None
            if killed_for_memory(event, kills, None, self._memory.limit_bytes):
                raise OutOfMemory("the worker was killed for its memory", place="memory_budget", remedy="raise it")
            raise WorkerError(f"the worker ended ({ending(event)})", place=str(self._source.folder / "worker.log"))
        return event

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.stop()
        self._memory.leave()
