# SPDX-License-Identifier: Apache-2.0
"""One worker process with what holds it to its memory: they begin and end together. And whose words count: those of a
worker that was let go do no more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from edge_client.memory.allocator import ALLOCATORS
from edge_client.memory.group import confine
from edge_client.memory.probes import ProcessMemory, Sampler
from fedcore.worker.messages import Command, Event, Trained
from fedcore.worker.process import WorkerDied, WorkerProcess

__all__ = ["HeldWorker"]


def _environment(allocator: str) -> dict[str, str]:
    """Environment of a worker process; its threads wait without spinning, since other processes need the cores."""
    return {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", **ALLOCATORS[allocator]}


class HeldWorker:
    """A worker in a memory group of its own.

    Args:
        sink: Gets its events, from a thread.
        log: File for its own output.
        limit_bytes: What it may use at first.
        name: Of its memory group: unique on this machine.
        threads: It computes with.
        allocator: `default` or `tuned`.
    """

    def __init__(
        self,
        sink: Callable[[Event | WorkerDied], None],
        log: Path,
        limit_bytes: int,
        name: str,
        threads: int,
        allocator: str,
    ) -> None:
        self._sink, self._past = sink, False
        self.memory_group = confine(limit_bytes, name, threads=threads)
        try:
            self._process = WorkerProcess(
                self._hear,
                log,
                environment=_environment(allocator),
                prepare=self.memory_group.prepare,
            )
        except BaseException:
            self.memory_group.close()
            raise
        self.pid = self._process.pid
        self.memory_group.attach(self.pid)
        self._sampler = Sampler(self.pid)

    def send(self, command: Command) -> None:
        """Tell it to do something."""
        self._process.send(command)

    def sample(self) -> ProcessMemory | None:
        """What it uses now; None if it is gone."""
        return self._sampler.sample()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def stop(self) -> None:
        """End it, in peace if it listens, and its memory group."""
        self._process.stop()
        self.memory_group.close()

    def let_go(self) -> threading.Thread:
        """End it without waiting for it; the thread that does. From now on it is heard no more, but for an update that
        it finished all the same, and its end."""
        self._past = True
        leaving = threading.Thread(target=self.stop, name="worker-leaving", daemon=True)
        leaving.start()
        return leaving

    def _hear(self, event: Event | WorkerDied) -> None:
        if not self._past or isinstance(event, Trained | WorkerDied):
            self._sink(event)
