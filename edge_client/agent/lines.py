# SPDX-License-Identifier: Apache-2.0
"""What an agent says of the things that happen, in words for a person and with the numbers for a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edge_client.agent.events import Decline
from edge_client.fetching.download import Download
from edge_client.fetching.upload import Upload
from fedcore.errors import FedkrsoError
from fedcore.round.measurement import ACCURACY, LOSS
from fedcore.round.plan import ArtefactObject, Plan, PublishedObject
from fedcore.system.logs import Line
from fedcore.transport.base import Limits
from fedcore.transport.lacking import lacking
from fedcore.worker.messages import Adopted, MeasuredState, Ready, Trained
from fedcore.worker.process import WorkerDied

__all__ = [
    "Callbacks",
    "adopted",
    "artefact_fetched",
    "budget_set",
    "connected",
    "declined",
    "denied",
    "disconnected",
    "disk_full",
    "downloaded",
    "loaded",
    "measured",
    "message_refused",
    "nobody_answers",
    "plan_arrived",
    "run_began",
    "trained",
    "update_gone",
    "uploaded",
    "worker_died",
    "worker_failed",
]


@dataclass(frozen=True)
class Callbacks:
    """Who hears of an agent, on this machine.

    Attributes:
        say: Gets one line for each thing that happens, for a person.
        heartbeat: Called at every turn of the loop, with what the node is doing: for a watchdog.
    """

    say: Callable[[str], None] = lambda line: None
    heartbeat: Callable[[str], None] = lambda state: None


def connected(limits: Limits, security: str, run: str = "") -> list[Line]:
    """The link to the broker is up, protected like this; of a run whose coordinator has not spoken yet, that it is
    waited for; and what the broker lacks."""
    waits = f", waiting for the coordinator of run {run}" if run else ""
    first = Line(f"connected ({limits.protocol}; {security}){waits}", event="connected")
    # That a coordinator cannot work there is the coordinator's to say.
    words = lacking(replace(limits, wildcards=True))
    return [first, *(Line(f"the broker: {lacks}", event="broker", level="warning") for lacks in words)]


def denied(topic_filter: str, reason: str, *, lasting: bool) -> Line:
    """The broker does not let this node hear what it needs: for good, or for now."""
    what = "see its access rules" if lasting else "asked again"
    words = f"the broker does not let us read {topic_filter}: {reason} ({what})"
    return Line(words, event="denied", level="error" if lasting else "warning")


def disconnected(reason: str) -> Line:
    """The link to the broker is lost."""
    return Line(f"disconnected: {reason}", event="disconnected", level="warning")


def message_refused(topic: str, error: FedkrsoError) -> Line:
    """A message did not count."""
    return Line(f"refused a message on {topic}: {error.one_line()}", event="message_refused", level="warning")


def plan_arrived(plan: Plan) -> Line:
    """The coordinator announced a plan."""
    return Line(f"plan of round {plan.round} ({plan.phase})", event="plan", round=plan.round)


def run_began(run_id: str, *, again: bool, contested: bool) -> Line:
    """The node is in a run, or in another one of the same name."""
    if contested:
        words = f"another run of this name again ({run_id[:12]}): do two coordinators lead one? stop all but one"
        return Line(words, event="run", level="warning")
    if again:
        return Line(f"another run of this name ({run_id[:12]}): what was done in the last one is left", event="run")
    return Line(f"in run {run_id[:12]}", event="run")


def budget_set(budget_bytes: int) -> Line:
    """The owner changed the memory budget."""
    return Line(f"memory budget is now {budget_bytes / 2**20:,.0f} MiB", event="budget", budget_bytes=budget_bytes)


def loaded(event: Ready) -> Line:
    """The worker holds the model.

    Example:
        >>> loaded(Ready(3, 0, "", 981, cut=304, left_out=34))
        'model loaded, 981 examples, 304 of them cut and 34 rows left out as too long, version 3'
    """
    words = f"model loaded, {event.examples} examples{event.too_long}, version {event.version}"
    return Line(
        words,
        event="loaded",
        examples=event.examples,
        version=event.version,
        cut=event.cut or None,
        left_out=event.left_out or None,
    )


def adopted(event: Adopted) -> Line:
    """The worker's replica moved to a version."""
    words = f"version {event.version} {event.digest[:12]}"
    return Line(words, event="adopted", version=event.version, digest=event.digest)


def measured(event: MeasuredState) -> Line:
    """A published state is measured on this node's held-out rows."""
    found = event.measurement
    if found is None:
        words = f"version {event.version} is not measured: no row is held out"
        return Line(words, event="measured", version=event.version, rows=0)
    accuracy, loss = found.sums[ACCURACY].mean, found.sums[LOSS].mean
    words = f"version {event.version} on {found.examples} held-out rows: accuracy {accuracy:.3f}, loss {loss:.3f}"
    return Line(
        f"{words}, {event.seconds:.1f} s",
        event="measured",
        version=event.version,
        rows=found.examples,
        accuracy=accuracy,
        loss=loss,
        seconds=round(event.seconds, 3),
    )


def trained(event: Trained) -> Line:
    """The worker has trained a round.

    Example:
        >>> trained(Trained(3, "3.bin", 2501, 0.5, 4.0, steps=40, batch_size=16))
        'round 3 trained 40 steps of 16, drawn from 2,501 examples, in 4.0 s, loss 0.500'
    """
    before = f", {event.restored} intervals from before" if event.restored else ""
    return Line(
        f"round {event.round} trained {event.steps:,} steps of {event.batch_size}, drawn from {event.examples:,} "
        f"examples, in {event.seconds:.1f} s{before}, loss {event.loss:.3f}",
        event="trained",
        round=event.round,
        examples=event.examples,
        steps=event.steps,
        batch_size=event.batch_size,
        seconds=round(event.seconds, 3),
        loss=event.loss,
    )


def artefact_fetched(obj: ArtefactObject) -> Line:
    """The run artefact is on the disk."""
    words, size_bytes = f"run artefact {obj.manifest.sha256[:12]} fetched", obj.manifest.size_bytes
    return Line(words, event="artefact", size_bytes=size_bytes)


def downloaded(obj: PublishedObject, download: Download) -> Line:
    """A server of HTTP sent an object, or did not."""
    what = f"fetched version {obj.version}" if obj.version else "fetched the run's artefact"
    megabytes, origin = f"{download.read_bytes / 1e6:.1f} MB", str(download.origin)
    if not download.why:
        return Line(f"{what} from {origin}: {megabytes}", event="downloaded", bytes=download.read_bytes)
    words = f"{what} from {origin}: {download.why} after {megabytes}; the broker brings the rest"
    return Line(words, event="downloaded", level="warning", bytes=download.read_bytes)


def uploaded(server_round: int, upload: Upload) -> Line:
    """A server of HTTP took an update, or did not."""
    what, megabytes, origin = f"update of round {server_round}", f"{upload.sent_bytes / 1e6:.1f} MB", str(upload.origin)
    words = f"{what} put to {origin}: {megabytes}"
    if not upload.why:
        return Line(words, event="uploaded", round=server_round, bytes=upload.sent_bytes)
    words = f"{what} put to {origin}: {upload.why} after {megabytes}; the broker brings it"
    return Line(words, event="uploaded", level="warning", round=server_round, bytes=upload.sent_bytes)


def nobody_answers(obj: PublishedObject) -> Line:
    """What is asked for does not come."""
    what = f"version {obj.version}" if obj.version else "the run's artefact"
    words = f"nobody answers for {what}: neither the coordinator nor the broker has it; has the run ended?"
    return Line(words, event="unanswered", level="warning")


def declined(action: Decline) -> Line:
    """No update of this round will come."""
    words = f"declined round {action.round}: {action.reason}"
    return Line(words, event="declined", level="warning", round=action.round)


def update_gone(server_round: int, refused: str) -> Line:
    """An update was committed, or refused for a reason."""
    what = f"update of round {server_round}"
    if refused:
        return Line(f"{what} refused: {refused}", event="refused", level="warning", round=server_round)
    return Line(f"{what} committed", event="committed", round=server_round)


def disk_full(error: FedkrsoError) -> Line:
    """The node rests until there is room."""
    return Line(error.one_line(), event="disk_full", level="warning")


def worker_failed(error: FedkrsoError) -> Line:
    """A command of the worker failed."""
    words = f"{error.place}: {error.message}" if error.place else error.message
    return Line(words, event="worker_failed", level="warning")


def worker_died(event: WorkerDied, why: str) -> Line:
    """The worker ended by itself; with the last line that it wrote, if it was not killed."""
    last = f": {event.tail.splitlines()[-1]}" if event.tail and event.returncode > 0 else ""
    return Line(f"{why}{last}", event="worker_died", level="warning")
