# SPDX-License-Identifier: Apache-2.0
"""What the round machine takes and gives: events in, an operator's commands among them, and actions out."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Action",
    "Answer",
    "Arriving",
    "CloseRound",
    "Command",
    "Declined",
    "DigestReported",
    "EndRound",
    "EndRun",
    "Event",
    "Exclude",
    "FinishRun",
    "Judged",
    "NodeOffline",
    "NodeOnline",
    "OpenRound",
    "Pause",
    "Readmit",
    "Report",
    "Resume",
    "Revoked",
    "RoundPublished",
    "Silent",
    "Tick",
    "UpdateAccepted",
]


@dataclass(frozen=True)
class NodeOnline:
    """A node said that it is there."""

    node: str


@dataclass(frozen=True)
class NodeOffline:
    """A node left, or its last will says so."""

    node: str
    left: bool = False
    """It said so itself, and will not be waited for; otherwise its connection was lost, and it may come back."""


@dataclass(frozen=True)
class Revoked:
    """A node's key counts no more: what it sent in the open round is left out."""

    node: str


@dataclass(frozen=True)
class Declined:
    """A participant will not send an update this round."""

    node: str
    round: int


@dataclass(frozen=True)
class UpdateAccepted:
    """A participant's update is checked, on disk and in the ledger."""

    node: str
    round: int


@dataclass(frozen=True)
class Arriving:
    """A participant's update made progress."""

    node: str
    round: int


@dataclass(frozen=True)
class RoundPublished:
    """The round's published state is out."""

    round: int


@dataclass(frozen=True)
class Judged:
    """How the run stands, of a run that may end early."""

    version: int
    """States up to this one are measured, as far as they are to be."""
    stop_at: int | None
    """The state at which it was clear that the run has not got better for long enough; None while it is not."""


@dataclass(frozen=True)
class DigestReported:
    """A node holds a version, with this model digest."""

    node: str
    version: int
    digest: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Pause:
    """An operator: no further round opens until `Resume`. The one that is open goes on to its end."""


@dataclass(frozen=True)
class Resume:
    """An operator: rounds open again."""


@dataclass(frozen=True)
class EndRound:
    """An operator: the open round closes now, with the updates that are in, if they are its quorum."""


@dataclass(frozen=True)
class Exclude:
    """An operator: a node is invited no more, and not waited for; what it sent in the open round counts."""

    node: str


@dataclass(frozen=True)
class Readmit:
    """An operator: an excluded node is invited again."""

    node: str


@dataclass(frozen=True)
class Report:
    """The dashboard has something for the event log; nothing is to be done."""

    text: str


Command = Pause | Resume | EndRound | Exclude | Readmit | Report
Event = (
    NodeOnline
    | NodeOffline
    | Revoked
    | Declined
    | Arriving
    | UpdateAccepted
    | RoundPublished
    | Judged
    | DigestReported
    | Tick
    | Command
)


@dataclass(frozen=True)
class OpenRound:
    """Announce a round to a cohort."""

    round: int
    cohort: tuple[str, ...]
    deadline_at: float


@dataclass(frozen=True)
class CloseRound:
    """Aggregate these participants' updates and publish."""

    round: int
    participants: tuple[str, ...]


@dataclass(frozen=True)
class Silent:
    """Tell the operator of a node that is online, was invited again and again, and has sent nothing by the deadline."""

    node: str
    missed: int
    """Deadlines, one after the other."""
    until: int
    """The round in which it may be invited again; before that only if there are too few others."""

    @property
    def words(self) -> str:
        """For the operator, one line."""
        late = f"online, and nothing by {self.missed} deadlines in a row"
        return f"{late}: invited again from round {self.until} on, or where others are too few"


@dataclass(frozen=True)
class FinishRun:
    """Announce that nothing is trained any more; nodes take the last published state and report."""


@dataclass(frozen=True)
class EndRun:
    """Write the summary and stop."""


@dataclass(frozen=True)
class Answer:
    """What a command came to: the first action that follows it, and the only one if it is refused."""

    done: bool
    """False: refused, and nothing changed."""
    text: str
    """For the operator, one line."""


Action = OpenRound | CloseRound | Silent | FinishRun | EndRun | Answer
