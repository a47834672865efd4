# SPDX-License-Identifier: Apache-2.0
"""When a node rests and when it goes on: while its owner's policy objects to work, or while its disk is full. What is
seen of the device and the disk becomes events of the session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from devices.base import Device
from edge_client.agent.events import MayWork, MustRest
from edge_client.agent.session import Session
from edge_client.agent.storage import Storage, round_bytes
from edge_client.agent.transfers import Transfers
from edge_client.owner.policy import Conditions, PolicySection, Watch
from edge_client.owner.sensing import Sensing
from edge_client.process.supervisor import Supervisor
from fedcore.device.readings import Readings
from fedcore.errors import StorageError
from fedcore.system.logs import Line

__all__ = ["Farewell", "Resting", "Surroundings", "patience_seconds"]

# For how long the agent's loop waits for a word before it looks around.
_AT_WORK_SECONDS, _WATCHING_SECONDS, _IDLE_SECONDS = 0.25, 1.0, 2.0
_POLICY_SECONDS = 1.0
_STORAGE_SECONDS = 5.0
# A sensor that hangs does not keep a node from saying that it rests because of it.
_FIRST_READING_SECONDS = 5.0


@dataclass(frozen=True)
class Surroundings:
    """What a node knows of where it is.

    Attributes:
        device: The machine's facts and sensors; this one's by default.
        local_time: What the hours of `[policy]` are of.
        steady: Seconds of a clock that never goes back, for all that is waited for.
    """

    device: Device | None = None
    local_time: Callable[[], datetime] = lambda: datetime.now().astimezone()
    steady: Callable[[], float] = time.monotonic


def patience_seconds(session: Session, transfers: Transfers, supervisor: Supervisor) -> float:
    """For how long an agent waits for a word before it looks around by itself: what is at work is looked at often, the
    processor of a device on which nothing happens is left asleep. Messages, the worker's words and the owner's wishes
    end the wait at once.

    Args:
        session: What the node is doing.
        transfers: What is on its way up or down.
        supervisor: Of its worker.
    """
    if session.busy or transfers.busy or session.state == "sending":
        return _AT_WORK_SECONDS
    # A worker that waits holds memory which others may need; a node that rests waits for its device; one that has
    # finished is about to leave.
    if supervisor.running or session.state in ("resting", "finished"):
        return _WATCHING_SECONDS
    return _IDLE_SECONDS


class Farewell:
    """A finished node stays a moment, so that its last word is delivered."""

    def __init__(self) -> None:
        self._finished_at: float | None = None

    def is_over(self, session: Session, now: float) -> bool:
        """Whether it has been finished for long enough.

        Args:
            session: What the node is doing.
            now: Steady clock, seconds.
        """
        if session.state != "finished":
            self._finished_at = None
            return False
        self._finished_at = self._finished_at or now
        return now > self._finished_at + 2.0


class Resting:
    """Looks at the device and the disk, and tells what that means for the session.

    Args:
        policy: When the owner lets the node work.
        storage: What it may take of its disk.
        device: Whose sensors are read, in a thread of their own.
        local_time: What the policy's hours are of.
        session: Says what it rests for; only read.
        say: Gets one line for each thing that happens.
    """

    def __init__(
        self,
        policy: PolicySection,
        storage: Storage,
        device: Device,
        local_time: Callable[[], datetime],
        session: Session,
        say: Callable[[str], None],
    ) -> None:
        self._storage, self._local_time, self._session, self._say = storage, local_time, session, say
        self._watch = Watch(policy)
        self._sensing = Sensing(device, lambda: self._watch.policy.idle_only)
        self._new_policy: PolicySection | None = None
        self._policy_at = self._storage_at = 0.0

    @property
    def readings(self) -> Readings | None:
        """What the device's sensors said last; None while they do not answer."""
        return self._sensing.latest().readings

    def start(self) -> None:
        """Begin to read the sensors."""
        self._sensing.start()

    def stop(self) -> None:
        """Read them no more."""
        self._sensing.stop()

    def wait(self) -> None:
        """Wait for the first reading, if the policy asks for anything: a node that must not work does not begin to."""
        if self._watch.policy.asks:
            self._sensing.wait(_FIRST_READING_SECONDS)

    def set_policy(self, policy: PolicySection) -> None:
        """Another policy, from the next look on (safe to call from a signal handler)."""
        self._new_policy = policy

    def look(self, at_seconds: float, *, quiet: bool) -> list[MustRest | MayWork]:
        """What has changed since the last look.

        Args:
            at_seconds: Now, on a clock that never goes back.
            quiet: All that a worker of before had said is taken: it must not be mistaken for the next one's words.
        """
        events: list[MustRest | MayWork] = []
        if "storage" in self._session.rests and at_seconds >= self._storage_at:
            self._storage_at = at_seconds + _STORAGE_SECONDS
            events += self._look_at_disk()
        new, self._new_policy = self._new_policy, None
        if new is not None and new != self._watch.policy:
            self._say(Line("the policy is another one now", event="policy"))
            self._watch = Watch(new, working="policy" not in self._session.rests)
            self._policy_at = 0.0
        if at_seconds >= self._policy_at:
            self._policy_at = at_seconds + _POLICY_SECONDS
            events += self._look_at_device(at_seconds, quiet)
        return events

    def _look_at_device(self, at_seconds: float, quiet: bool) -> list[MustRest | MayWork]:
        sensed = self._sensing.latest()
        reason = self._watch.take(Conditions(self._local_time(), sensed.readings, sensed.others_percent), at_seconds)
        resting = self._session.rests.get("policy")
        if reason is not None and reason != resting:
            self._say(Line(f"resting: {reason}", event="resting"))
            return [MustRest("policy", reason)]
        if reason is None and resting is not None and quiet:
            self._say(Line("working again: the policy has nothing against it any more", event="working"))
            return [MayWork("policy")]
        return []

    def _look_at_disk(self) -> list[MustRest | MayWork]:
        """Go on as soon as what was declined would fit."""
        plan = self._session.plan
        try:
            self._storage.require(0 if plan is None else round_bytes(plan), "a round")
        except StorageError:
            return []
        self._say(Line("there is room on the disk again", event="disk_free"))
        return [MayWork("storage")]
