# SPDX-License-Identifier: Apache-2.0
"""The client as a state machine: events in, actions out; no I/O and no clock.

    idle ──plan──> loading ──ready──> fetching ──held──> measuring ──> training ──update──> sending ──commit──> idle
                      (each step is skipped where there is nothing to do; a newer plan overtakes an older one)
    idle ──a plan with an artefact that is not here──> fetching ──kept──> loading
    any ──another run of the same name──> idle, as at the start
    any ──the disk is full, or the owner's policy objects──> resting ──all is right again──> what is due

Where rounds are buffered, a node goes through with a plan that it has begun, as long as its update still counts by the
newest one, which it takes up then.

An update that is on disk outlives everything: it is offered again after any restart until it is committed or refused. A
node that rests says so and declines; if the round is still open when it goes on, it takes part after all, from its last
finished interval. `TRANSITIONS` says which event may lead from where to where; any other is an error."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import edge_client.agent.events as s
from edge_client.agent.states import BUSY, TRANSITIONS, State, has_room, held_version, update_waits
from fedcore.errors import RunError
from fedcore.round.measurement import Measurement
from fedcore.round.plan import ArtefactObject, Plan, PublishedObject, objects_needed

__all__ = ["TRANSITIONS", "Session", "State"]

# A worker that dies this often in one round has a reason that another start will not mend.
_TRIES_PER_ROUND = 5


@dataclass
class Session:
    """One node's part in a run.

    Args:
        node: This node's id.
        sent_round: The last round whose update was committed or refused (from disk after a restart).
        update_round: The round whose update lies in the outbox (from disk), 0 for none.
        artefact: SHA-256 of the run artefact that lies on the disk, empty for none.
    """

    node: str
    sent_round: int = 0
    update_round: int = 0
    artefact: str = ""
    state: State = "idle"
    plan: Plan | None = None
    newer: Plan | None = None
    """The newest plan, while the one before is gone through with."""
    worker_ready: bool = False
    loaded: Plan | None = None  # Of the round that the worker was loaded for.
    version: int = -1
    generation: int = 0
    digest: str = ""
    reason: str = ""
    wanted: PublishedObject | None = None
    measured: tuple[int, Measurement | None] | None = None
    """The version that was measured last, and what came of it."""
    tries: int = 0
    rests: dict[s.Cause, str] = field(default_factory=dict)
    """Why it must rest, by cause."""
    story: deque[type[s.Event]] = field(default_factory=lambda: deque(maxlen=200))  # kinds: events hold whole plans

    def handle(self, event: s.Event) -> list[s.Action]:
        """Take one event; returns what to do, in order."""
        self.story.append(type(event))
        before = self.state, self.version, self.reason
        actions = self._handle(event)
        if (self.state, self.version, self.reason) != before:
            actions.append(s.TellStatus())
        return actions

    @property
    def heard(self) -> Plan | None:
        """The newest plan."""
        return self.newer or self.plan

    @property
    def busy(self) -> bool:
        """Whether its worker has something to do, or will have at once."""
        return self.state in BUSY or self.state == "fetching"

    def check(self) -> None:
        """Invariants that hold between events; tests call it after each."""
        assert self.state in ("idle", "resting", "finished") or self.plan is not None, self.story
        assert self.state not in ("adopting", "measuring", "training") or self.worker_ready, self.story
        assert self.state != "fetching" or self.wanted is not None, self.story
        assert self.state != "sending" or self.update_round > self.sent_round, self.story
        assert self.rests or self.state != "resting", self.story
        assert self.newer is None or self.plan is not None, self.story
        quiet = ("resting", "finished") if "storage" in self.rests else ("resting", "finished", "sending")
        assert not self.rests or self.state in quiet, self.story
        assert "policy" not in self.rests or not self.worker_ready, self.story

    def _go(self, state: State) -> None:
        sources, targets = TRANSITIONS[self.story[-1]]
        if self.state not in sources or state not in targets:
            last = [kind.__name__ for kind in self.story][-5:]
            raise RunError(f"{self.node} cannot go from {self.state} to {state}; last events: {last}")
        self.state = state

    def _handle(self, event: s.Event) -> list[s.Action]:
        match event:
            case s.PlanArrived(plan):
                return self._plan_arrived(plan)
            case s.WorkerReady(version, generation, digest):
                if "policy" in self.rests:
                    # From a worker that has been let go since.
                    return []
                self.worker_ready = True
                self.version, self.generation, self.digest = version, generation, digest
                return self._next() if self.state == "loading" else []
            case s.Fetched(sha256):
                return self._fetched(sha256)
            case s.Adopted(version, generation, digest):
                self.version, self.generation, self.digest = version, generation, digest
                self.wanted = None
                self.reason = self._why_resting()
                # Also while fetching: an object that was being taken when the disk filled up changes what is still
                # needed.
                return self._next() if self.state in ("adopting", "fetching") else []
            case s.StateMeasured(version, measurement):
                self.measured = version, measurement
                # Measuring that ends was no try; training begins one.
                self.tries -= self.state == "measuring"
                return self._next() if self.state == "measuring" else []
            case s.UpdateReady(server_round, worker_ended):
                self.worker_ready = self.worker_ready and not worker_ended
                if self.plan is None or self.plan.round != server_round or self.state not in ("training", "resting"):
                    late = s.Decline(server_round, "late: the round was over before the update was ready")
                    return [late, *self._next()] if self.state == "training" else []
                self.update_round = server_round
                return self._next()
            case s.UpdateGone(server_round, refused):
                self.sent_round = max(self.sent_round, server_round)
                self.reason = self._why_resting() or refused
                return self._next() if self.state == "sending" else []
            case s.WorkerFailed(reason, died, not_equal, artefact_damaged):
                if artefact_damaged:
                    return self._artefact_damaged(reason)
                return self._failed(reason, died=died, not_equal=not_equal)
            case s.RoomWanted():
                return self._let_go()
            case s.RunBegan():
                return self._begin_run()
            case s.MustRest(cause, reason):
                self.rests[cause] = reason
                return self._stop_work(cause)
            case s.MayWork(cause):
                return self._may_work(cause)

    def _plan_arrived(self, plan: Plan) -> list[s.Action]:
        if self._goes_through(plan):
            self.newer = plan
            unlisted = self.state == "fetching" and self.wanted not in (*plan.objects, plan.artefact)
            return self._next() if unlisted else []
        old, self.plan, self.newer = self.plan, plan, None
        if old is None or old.round != plan.round:
            self.tries = 0
        # What the worker is doing cannot be stopped half-way without losing it; its answer leads on to the new plan.
        return [] if self.state in BUSY else self._next()

    def _begin_run(self) -> list[s.Action]:
        """As a node that has just started, but for why it must rest, and for the run artefact on its disk."""
        self._go("resting" if self.rests else "idle")
        self.sent_round = self.update_round = self.tries = self.generation = 0
        self.plan, self.newer, self.wanted, self.measured = None, None, None, None
        self.worker_ready, self.version, self.digest, self.reason = False, -1, "", self._why_resting()
        return [s.EndWork()]

    def _fetched(self, sha256: str) -> list[s.Action]:
        if self.state != "fetching" or self.wanted is None or self.wanted.manifest.sha256 != sha256:
            return []
        if isinstance(self.wanted, ArtefactObject):
            obj, self.wanted, self.artefact = self.wanted, None, sha256
            return [s.KeepArtefact(obj), *self._next()]
        self._go("adopting")
        return [s.AdoptObject(self.wanted)]

    def _artefact_damaged(self, reason: str) -> list[s.Action]:
        """The worker found another artefact than the run's, or none: it is fetched, and the worker loads again."""
        self.artefact, self.worker_ready, self.reason = "", False, reason
        if self.rests:
            return []
        self.tries += 1
        return self._next() if self.tries < _TRIES_PER_ROUND else self._decline(reason)

    def _let_go(self) -> list[s.Action]:
        """The server wants the memory of a worker that has nothing to do."""
        if not self.worker_ready or self.state not in ("idle", "sending", "finished"):
            return []
        self.worker_ready = False
        return [s.LetGo()]

    # Resting

    def _stop_work(self, cause: s.Cause) -> list[s.Action]:
        actions: list[s.Action] = []
        if self.state in ("measuring", "training"):
            # An owner who wants the device, or a full disk, is no failure of this round.
            self.tries -= 1
        if cause == "policy":
            # The device is the owner's: no model stays in its memory.
            actions, self.worker_ready = [s.LetGo()], False
        if self.state == "finished" or (self.state == "sending" and cause == "policy"):
            self.reason = self._why_resting()
            return actions
        return actions + self._rest()

    def _may_work(self, cause: s.Cause) -> list[s.Action]:
        if self.rests.pop(cause, None) is None:
            return []
        self.reason = self._why_resting()
        if self.state != "resting":
            return []
        if self.rests:
            return self._send_waiting()
        self._go("idle")
        return self._next()

    def _rest(self) -> list[s.Action]:
        """Nothing is worked on; who is invited hears why."""
        self.wanted, self.reason = None, self._why_resting()
        if self.state == "finished" and self.plan is not None and self.plan.phase == "finished":
            return []
        self._go("resting")
        return [s.Decline(self.plan.round, self.reason)] if self.plan is not None and self._invited(self.plan) else []

    def _why_resting(self) -> str:
        return "; ".join(self.rests.values())

    def _invited(self, plan: Plan) -> bool:
        return plan.phase == "train" and self.node in plan.cohort and self.sent_round < plan.round

    def _goes_through(self, newer: Plan) -> bool:
        """Whether the present plan is finished though there is a newer one."""
        plan = self.plan
        if plan is None or plan.round == newer.round or plan.run_id != newer.run_id or not newer.takes(plan.round):
            return False
        return self.tries < _TRIES_PER_ROUND and self._invited(plan)

    def _take_up(self, plan: Plan) -> list[s.Action]:
        self.plan, self.newer, self.tries = plan, None, 0
        return self._next()

    def _waits(self, plan: Plan) -> bool:
        return update_waits(plan, self.node, self.update_round, self.sent_round)

    def _send_waiting(self) -> list[s.Action]:
        """Offer the update that lies on the disk, if it counts and nobody offers it yet."""
        plan = self.plan
        if plan is None or not self._waits(plan) or "storage" in self.rests or self.state == "sending":
            return []
        self._go("sending")
        return [s.SendUpdate(self.update_round)]

    def _next(self) -> list[s.Action]:
        """The next thing to do for the present plan, from wherever this node stands."""
        if self.newer is not None and not self._goes_through(self.newer):
            return self._take_up(self.newer)
        plan = self.plan
        if plan is None:
            return []
        sent = self._send_waiting()
        if sent or (self.state == "sending" and self._waits(plan)):
            return sent
        if self.rests:
            return self._rest()
        if plan.artefact is not None and plan.artefact.manifest.sha256 != self.artefact:
            self._go("fetching")
            self.wanted, self.worker_ready = plan.artefact, False
            return [s.Fetch(plan.artefact)]
        if self.worker_ready and self.version > plan.version:
            # The run was put back to a copy of before. Loading drops what no plan leads back from.
            self.reason = f"version {self.version} is ahead of the run's {plan.version}"
            self.tries += 1
            return self._load() if self.tries < _TRIES_PER_ROUND else self._decline(self.reason)
        if not self.worker_ready or (self._invited(plan) and not has_room(self.loaded, plan)):
            return self._load()
        held, differs = held_version(plan, self.version, self.generation, self.digest)
        self.reason = differs or self.reason
        needed = objects_needed(plan, held, self.generation)
        if needed is None:
            return self._decline(f"no way from version {self.version} to {plan.version} is published")
        if needed and self.newer is not None:
            # Nothing of the older one is begun.
            return self._take_up(self.newer)
        if needed:
            self._go("fetching")
            self.wanted = needed[0]
            return [s.Fetch(needed[0])]
        trains, finished = self._invited(plan), plan.phase == "finished"
        if (trains or finished) and self.tries < _TRIES_PER_ROUND:
            asks = plan.evaluation is not None and plan.evaluation.due
            if asks and (self.measured or (-1,))[0] != plan.version:
                self._go("measuring")
                self.tries += 1
                return [s.MeasureState(plan)]
            if trains:
                self._go("training")
                self.tries += 1
                return [s.TrainRound(plan, self.measurement)]
        self._go("finished" if finished else "idle")
        return []

    def _load(self) -> list[s.Action]:
        assert self.plan is not None
        self.worker_ready, self.loaded = False, self.plan
        self._go("loading")
        return [s.Configure(self.plan)]

    @property
    def measurement(self) -> Measurement | None:
        """What was measured of the version that the plan starts from; None if nothing was."""
        return self.measured[1] if self.plan and self.measured and self.measured[0] == self.plan.version else None

    def _failed(self, reason: str, *, died: bool, not_equal: bool) -> list[s.Action]:
        self.worker_ready = self.worker_ready and not died
        if self.rests:
            return []
        self.reason, was = reason, self.state
        if was == "fetching" and not died:
            # Fetching needs no worker.
            return []
        self.wanted = None
        # Of measuring and training the try was counted when it began.
        counted = was in ("measuring", "training")
        # Where it only failed, the replica has dropped what it held: whole states from nothing.
        again = self.busy if died else was == "adopting" or (counted and not_equal)
        self.tries += again and not counted
        if again and self.tries < _TRIES_PER_ROUND:
            return self._load()
        if was == "measuring" and self.plan is not None and self.plan.phase == "finished":
            # Nobody waits for an update: the run ends without this node's numbers.
            self.measured = self.plan.version, None
            return self._next()
        return self._decline(reason) if self.busy else []

    def _decline(self, reason: str) -> list[s.Action]:
        plan, self.reason, self.tries = self.plan, reason, _TRIES_PER_ROUND
        asked = plan is not None and plan.phase == "train" and self.node in plan.cohort
        declined: list[s.Action] = [s.Decline(plan.round, reason)] if plan is not None and asked else []
        if self.newer is not None:
            return declined + self._take_up(self.newer)
        self._go("idle")
        return declined
