# SPDX-License-Identifier: Apache-2.0
"""The agent's hold on its worker: started under the budget, planned for before a weight is loaded, watched, and let go.

A round trains down a sequence of memory plans: the best that fits, then smaller ones. The worker goes down a step when
the monitor says so or when an allocation fails; a worker that the kernel killed for its memory starts again one step
lower, from its last finished interval. Every round begins at the top again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from edge_client.memory.limits import Limit, kernel_limits, room
from edge_client.memory.monitor import Advice, Monitor, Reading
from edge_client.memory.planning import Planning
from edge_client.memory.probes import ProcessMemory, own_rss_bytes, pressure, process_bytes
from edge_client.node import Node
from edge_client.process.deaths import ending, killed_for_memory
from edge_client.process.held import HeldWorker
from edge_client.process.paths import artefact_path
from edge_client.process.route import cache_folder
from edge_client.process.turns import Turns
from fedcore.device.memoryplan import MemoryComponents
from fedcore.round.measurement import Measurement
from fedcore.round.plan import Plan
from fedcore.system.logs import Line
from fedcore.worker.messages import (
    Adopt,
    Configure,
    Event,
    Measure,
    Progress,
    Ready,
    Route,
    StepDown,
    Trace,
    Traced,
    Train,
)
from fedcore.worker.process import WorkerDied

__all__ = ["Supervisor"]

# The agent's own memory is measured; it may still grow by this much.
_AGENT_RESERVE_BYTES = 12_000_000
# Enough to load the libraries anywhere, so that a budget below that is refused with numbers instead of a kill.
_TRACE_BYTES = 512 * 2**20


class Supervisor:
    """Starts, plans, watches and ends a node's worker.

    Args:
        node: The node's file.
        model_folder: Resolved checkpoint folder.
        budget_bytes: For agent and worker together.
        sink: Gets the worker's events, from a thread.
        say: Gets one line for each thing that happens.
    """

    def __init__(
        self,
        node: Node,
        model_folder: Path,
        budget_bytes: int,
        sink: Callable[[Event | WorkerDied], None],
        say: Callable[[str], None],
    ) -> None:
        self._node, self._model_folder, self._sink, self._say = node, model_folder, sink, say
        self._folder = Path(node.folder)
        self.monitor = Monitor(budget_bytes)
        self.progress = Progress(0, 0, 0.0)
        self._worker: HeldWorker | None = None
        self._plan: Plan | None = None
        self._planning = Planning(node, self._folder / "replica")
        self._worker_peak = 0
        self.worker_memory: ProcessMemory | None = None
        """What the worker used at the last sample; None while there is none."""
        self.accelerator_bytes: int | None = None
        """What the worker said last that it holds of an accelerator's memory; None on a processor."""
        self.route = ""
        """How the worker computes: `float32 on cpu`; empty until that is known."""
        # Found by the first worker; those that follow it compute alike.
        self._route = Route(node.torch_device, node.compute_dtype)
        self._leaving: threading.Thread | None = None
        self._turns = Turns(node, say)

    # What the worker is told

    @property
    def running(self) -> bool:
        """Whether there is a worker process."""
        return self._worker is not None

    def is_worker(self, pid: int) -> bool:
        """Whether this process is the present worker."""
        return self._worker is not None and self._worker.pid == pid

    def configure(self, plan: Plan) -> None:
        """Start a worker if there is none; it finds out what training would need before it loads anything."""
        self._plan = plan
        if self._worker is None and not self._turns.may_start(plan):
            return
        if self._worker is None:
            # Two at a time would not fit the budget.
            self._wait_for_leaving()
            self._planning.forget()
            # Libraries are loaded and the budget is judged in here; before weights are, the limit comes down to the
            # budget.
            self._worker = HeldWorker(
                self._sink,
                self._folder / "worker.log",
                max(self._worker_room(), _TRACE_BYTES),
                f"fedkrso-{self._node.run}-{self._node.node}-{os.getpid()}",
                self._threads,
                "default" if self._node.allocator == "default" else "tuned",
            )
        self._worker.send(
            Trace(
                plan=plan,
                model_folder=str(self._model_folder),
                data=self._node.data,
                folder=str(self._folder / "replica"),
                threads=self._threads,
                torch_device=self._route.torch_device,
                compute_dtype=self._route.compute_dtype,
                route_folder=str(cache_folder(os.environ) or self._folder),
            )
        )

    def traced(self, event: Traced) -> None:
        """Choose a plan and have the worker load.

        Raises:
            BudgetError: Nothing fits the budget; the message has the numbers.
            WorkerError: Something would, but the device has too little memory left now.
        """
        assert self._worker is not None and self._plan is not None
        if not self.route:
            self._say(f"computes in {event.route.words}" + (f" ({event.route.reason})" if event.route.reason else ""))
        self._route, self.route = event.route, event.route.words
        memory, unmeasured = self._planning.load(event.footprint, self._plan, self._worker_room(), self._now())
        self._worker.memory_group.set_limit(self._worker_room())
        self._worker.send(
            Configure(
                plan=self._plan,
                run=self._node.run,
                node=self._node.node,
                model_folder=str(self._model_folder),
                data=self._node.data,
                folder=str(self._folder / "replica"),
                threads=self._threads,
                torch_device=self._route.torch_device,
                compute_dtype=self._route.compute_dtype,
                memory=memory,
                calibrate=unmeasured,
                artefact=str(artefact_path(self._folder)),
            )
        )

    def ready(self, event: Ready) -> None:
        """The model is loaded and two tiny steps are measured."""
        self._worker_peak = max(self._worker_peak, event.peak_bytes or 0)
        self.accelerator_bytes = event.accelerator_bytes
        self._planning.measured(event.measured)

    def adopt(self, command: Adopt) -> None:
        """Have the worker take a published state."""
        assert self._worker is not None
        self._worker.send(command)

    def measure(self, plan: Plan) -> None:
        """Have the worker measure the state that a plan starts from, with as much memory as training it has.

        Raises:
            WorkerError: Nothing fits now.
        """
        assert self._worker is not None
        self.progress = Progress(0, 0, 0.0)
        self._worker.send(Measure(plan, *self._planning.measure(plan, self._now())))

    def train(self, plan: Plan, path: Path, measured: Measurement | None = None) -> None:
        """Have the worker train a round, from the best plan that fits now; the update carries what was measured.

        Raises:
            WorkerError: Nothing fits now.
        """
        assert self._worker is not None
        self.progress = Progress(0, 0, 0.0)
        memory_steps = self._planning.begin(plan, self._now())
        foreseen = memory_steps[0].components.total_bytes
        words = f"round {plan.round}: {self._planning.words(0)}; {foreseen / 2**20:,.0f} MiB foreseen"
        self._say(Line(words, event="memory_plan", round=plan.round, foreseen_bytes=foreseen))
        self._worker.send(Train(plan, str(path), memory_steps, measured))

    def set_budget(self, budget_bytes: int) -> None:
        """The owner changed the budget.

        A worker that trains takes the first step that fits it; the monitor keeps to it from now on, and the kernel's
        limit follows when the worker is below it."""
        self.monitor.set_budget(budget_bytes)
        memory_step = self._planning.memory_step_for(self._worker_room())
        if self._worker is not None and memory_step > self.progress.memory_step:
            self._worker.send(StepDown(memory_step))
        self._follow_budget()

    def end(self) -> None:
        """End the worker, in peace if it listens."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        self._wait_for_leaving()
        self._turns.forget()
        self._turns.leave()

    def release(self) -> None:
        """Let the worker go, in peace if it listens, without waiting for it; what it says from now on counts no
        more."""
        worker, self._worker = self._worker, None
        self._turns.forget()
        if worker is None:
            return
        # Heard no more from here on, also while an earlier one is waited for.
        leaving = worker.let_go()
        self._wait_for_leaving()
        self._leaving = leaving

    def turn(self, *, busy: bool) -> bool:
        """Start a worker that waited for the server to let go; whether the server now waits for an idle one to go.

        Args:
            busy: There is something to load or to train.
        """
        if (plan := self._turns.due()) is not None:
            self.configure(plan)
        if self._worker is None and (self._leaving is None or not self._leaving.is_alive()):
            self._turns.leave()
        return self._turns.server_wants(busy=busy)

    # What is known about it

    def died(self, event: WorkerDied) -> str:
        """Take note of the worker's end; returns why it ended, in words."""
        worker, self._worker = self._worker, None
        kills = worker.memory_group.kills() if worker is not None else None
        by_memory = killed_for_memory(event, kills, self.monitor.last, self.monitor.budget_bytes)
        if worker is not None:
            # It has ended: only our end of its pipes is left, and its memory group.
            worker.stop()
        if not by_memory:
            return f"the worker ended ({ending(event)})"
        self._planning.killed(self.progress.memory_step)
        last = self.monitor.last.described() if self.monitor.last is not None else "no reading"
        return f"the worker was killed for its memory ({ending(event)}; {last})"

    def progressed(self, event: Progress, at_seconds: float) -> None:
        """A step is done."""
        if event.memory_step > self.progress.memory_step and event.memory_step < len(self._planning.memory_steps):
            self.monitor.stepped_down(at_seconds)
            self._say(
                Line(f"stepped down: {self._planning.words(event.memory_step)}", event="stepped_down", level="warning")
            )
        self.progress, self.accelerator_bytes = event, event.accelerator_bytes
        self._worker_peak = max(self._worker_peak, event.peak_bytes or 0)

    def sample(self, at_seconds: float) -> Reading:
        """Read what agent, worker and device use, and act on it."""
        worker = self._worker
        now, left, limits = pressure(), room(), kernel_limits()
        used = self.worker_memory = worker.sample() if worker is not None else None
        self.accelerator_bytes = self.accelerator_bytes if worker is not None else None
        reading = Reading(
            at_seconds=at_seconds,
            agent_bytes=self._light_bytes(),
            worker_bytes=used.total_bytes if used is not None else None,
            device_available_bytes=None if left is None else left.size_bytes,
            device_total_bytes=limits[0].size_bytes if limits else None,
            pressure_percent=None if now is None else now.some_percent,
        )
        advice = self.monitor.take(reading)
        # While the libraries load there is nothing to step down from; what does not fit is refused then.
        if worker is not None and self._planning.loaded is not None and advice is not Advice.FINE:
            self._follow(advice, worker)
        self._follow_budget()
        return reading

    @property
    def peak_bytes(self) -> int:
        """Highest use of agent and worker together: as sampled, or as the worker itself saw between samples."""
        agent = self.monitor.last.agent_bytes if self.monitor.last is not None else own_rss_bytes()
        return max(self.monitor.peak_bytes, agent + self._worker_peak)

    @property
    def components(self) -> MemoryComponents | None:
        """The present plan's foreseen components."""
        return self._planning.components(self.progress.memory_step)

    @property
    def memory_group(self) -> str:
        """What holds the worker to its budget: `cgroup v2`, `cgroup v1`, `rlimit` or `none`."""
        return self._worker.memory_group.kind if self._worker is not None else ""

    # Inside

    @property
    def _threads(self) -> int:
        return self._node.threads or os.cpu_count() or 1

    def _light_bytes(self) -> int:
        """What this process uses, and a server that shares the budget, without its worker."""
        return (process_bytes(os.getpid()) or own_rss_bytes()) + self._turns.server_bytes()

    def _worker_room(self) -> int:
        return max(1, self.monitor.budget_bytes - self._light_bytes() - _AGENT_RESERVE_BYTES)

    def _now(self) -> Limit:
        """What the worker may have now: its share of the budget, or less where the device has less left."""
        assert self._worker is not None
        budget, left = Limit("the budget", self._worker_room()), room()
        if left is None:
            return budget
        have = Limit(left.source, left.size_bytes + (process_bytes(self._worker.pid) or 0))
        return min(budget, have, key=lambda limit: limit.size_bytes)

    def _follow(self, advice: Advice, worker: HeldWorker) -> None:
        memory_step = self.progress.memory_step + 1
        if advice is Advice.STEP_DOWN and memory_step < len(self._planning.memory_steps):
            self._say(Line(f"memory: {self.monitor.reason}; stepping down", event="memory", level="warning"))
            worker.send(StepDown(memory_step))
        elif self.monitor.last is not None and self.monitor.last.used_bytes > self.monitor.budget_bytes:
            self._say(Line(f"memory: {self.monitor.reason}; ending the worker", event="memory", level="warning"))
            worker.kill()

    def _follow_budget(self) -> None:
        """Bring the kernel's limit to the budget, as soon as the worker is below it: a limit below its use would kill
        it at once."""
        if self._worker is None or self._planning.loaded is None:
            return
        group = self._worker.memory_group
        wanted, limit, last = self._worker_room(), group.limit_bytes, self.monitor.last
        below = last is not None and (last.worker_bytes or 0) < wanted
        if (wanted > limit or below) and abs(wanted - limit) > _AGENT_RESERVE_BYTES:
            group.set_limit(wanted)

    def _wait_for_leaving(self) -> None:
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.join()
