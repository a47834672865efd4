# SPDX-License-Identifier: Apache-2.0
"""What of a run is measured: by the coordinator's own evaluation process, and by nodes on rows of theirs; kept in the
ledger, shown in the view. It changes nothing that is learned, but where the job lets it end the run early."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

import coordinator.rounds.events as e
from coordinator.job import Job
from coordinator.rounds.machine import RoundMachine
from coordinator.run.archive import Archive
from coordinator.run.evaluator import Evaluator
from coordinator.run.going_on import CUT_SHORT, ended_by_head
from coordinator.run.measured import pooled
from coordinator.run.model import GlobalModel
from coordinator.store.folder import stored_job, write_job
from coordinator.store.ledger import Ledger
from coordinator.store.rows import NodesMeasured, RoundRow
from coordinator.store.standing import Standing, Standings
from coordinator.store.view import RunView
from fedcore.config.sections import TaskSection
from fedcore.round.plan import Plan, Position, StateObject, cheapest_way
from fedcore.worker.messages import Evaluated, Event, Ready
from fedcore.worker.process import WorkerDied

__all__ = ["Measuring"]


class Measuring:
    """Belongs to the coordinator's loop.

    Args:
        job: Says what is measured, and where.
        ledger: Has the rounds' rows.
        archive: Has the published states.
        view: Shows rows, and which round is the best.
    """

    def __init__(self, job: Job, ledger: Ledger, archive: Archive, view: RunView) -> None:
        self.job, self._section = job, job.evaluation
        self._ledger, self._archive, self._view = ledger, archive, view
        self._evaluator: Evaluator | None = None
        self._warned = self._loaded = False
        view.rows, view.start = ledger.rounds(), ledger.fact("measured_start", NodesMeasured)
        view.cut_short = bool(ledger.fact(CUT_SHORT, bool))
        self._standings = Standings(self._section)
        view.standing = self._standings.of(view.rows)

    def start(self, plan: Plan, model_folder: Path, sink: Callable[[Event | WorkerDied], None]) -> None:
        """Start the evaluation process, where the coordinator measures.

        Args:
            plan: Any plan of the run.
            model_folder: The checkpoint.
            sink: Gets the process' events, from a thread.
        """
        if self._section is not None and self._section.here:
            files, model = self._archive.folder, str(model_folder)
            # What nodes are asked for is not for this process: it holds nothing out.
            plan = msgspec.structs.replace(plan, evaluation=None)
            self._evaluator = Evaluator(sink, plan, self.job.run, self._section, model, files.evaluator, files.artefact)
            self._repeat()

    def _repeat(self) -> None:
        """Measure what an earlier life of the coordinator had published and not measured yet."""
        for row in self._view.rows[-2:]:
            plan = self._ledger.plan(row.round)
            if row.accuracy is None and plan is not None and self._is_due(row.round):
                goal = row.round, plan.training.generation
                # A run that ends early waits for it; any other goes on without what cannot be reached any more.
                if self.judging or cheapest_way(self._archive.listed(*goal), goal, (0, 0)) is not None:
                    self._ask(goal)

    def _is_due(self, version: int) -> bool:
        """What later rounds are compared with is measured too, however often the others are."""
        return self._section is not None and (self._section.is_due(version) or self.job.head.is_head(version))

    def _ask(self, goal: Position) -> None:
        assert self._evaluator is not None
        self._evaluator.evaluate(goal, self._archive.listed(*goal), self._archive.path)

    def stop(self) -> None:
        """End the process."""
        if self._evaluator is not None:
            self._evaluator.stop()

    @property
    def pending(self) -> bool:
        """Whether an evaluation's answer has not come."""
        return self._evaluator is not None and self._evaluator.pending > 0

    @property
    def reading(self) -> Collection[StateObject]:
        """Objects that the process may still read, and those that lead to the best round."""
        reading = set() if self._evaluator is None else self._evaluator.reading
        best = None if self._view.standing is None else self._view.standing.best
        return reading if best is None else {*reading, *self._archive.leading_to(best)}

    @property
    def judging(self) -> bool:
        """Whether the run may end early."""
        return self._section is not None and self._section.stop_after > 0

    @property
    def standing(self) -> Standing | None:
        """Which round is the best; None where nothing is measured."""
        return self._view.standing

    def judged(self, machine: RoundMachine, model: GlobalModel, note: Callable[[str, str, str], None]) -> list[e.Event]:
        """How the run stands, for the round machine, where it may end early. Where heads from sums end the run it does
        not end at once: one more round makes a head of what there is, and after a restart too.

        Args:
            machine: Whose rounds may become fewer.
            model: What its rounds learn.
            note: Takes a kind, a node and words.
        """
        if self.standing is None or not machine.judging:
            return []
        found = ended_by_head(self.job, machine.next_round) if self.standing.stop_at is not None else None
        if found is None:
            return [e.Judged(self.standing.judged, self.standing.stop_at)]
        self._ledger.put_fact(CUT_SHORT, True)
        write_job(self._archive.folder, found(stored_job(self._archive.folder.root)))
        self.job = job = found(self.job)
        self._section = job.evaluation
        model.follow(job.head)
        machine.settings, machine.untimed, machine.judging = job.round, frozenset(job.phases), False
        self._view.total_rounds, self._view.phases, self._view.cut_short = job.round.rounds, job.phases, True
        note("ends", "", f"nothing better for long enough: a head from sums in round {job.round.rounds} ends the run")
        return [e.Tick()]

    def warn(self, note: Callable[[str, str, str], None]) -> None:
        """Note what `below` says, if it says something.

        Args:
            note: Takes a kind, a node and words.
        """
        if words := self.below():
            note("below", "", words)

    def below(self) -> str:
        """What a person is told, once, of a model that is worse than the head with which its rounds began; empty where
        it is not."""
        found = {row.round: accuracy for row in self._view.rows if (accuracy := _accuracy_of(row)) is not None}
        head = min((number for number in found if self.job.head.is_head(number)), default=0)
        last = max(found, default=0)
        if self.job.head.comes_again and not self.job.head.is_head(last):
            # The next head is made of what this round learned, whatever its own is worth.
            return ""
        if self._warned or not head or last <= head or found[last] >= found[head]:
            return ""
        self._warned = True
        again = "" if self.job.head.comes_again else ', or have a run end with a head from sums ([head] again = "end")'
        return (
            f"round {last} is below frozen features: accuracy {found[last]:.3f}, {found[head]:.3f} with the head alone"
            f" (round {head}); lower the learning rates (fedkrso tune){again}"
        )

    def heard(self, event: Ready | WorkerDied) -> None:
        """The process is loaded, or ended.

        Raises:
            WorkerError: It ended, and nobody let it go.
        """
        assert self._evaluator is not None
        if isinstance(event, WorkerDied):
            self._evaluator.died(event)
            return
        if event.too_long and not self._loaded:
            note = f"measures on {event.examples:,} held-out examples{event.too_long}"
            self._view.notes = (*self._view.notes, note)
        if event.trivial is not None:
            self._ledger.put_fact("trivial", event.trivial)
        self._loaded = True
        self._evaluator.ready(event)

    def tick(self) -> None:
        """Let the process go, where it is long until the next state."""
        if self._evaluator is not None:
            self._evaluator.tick()

    def published(self, plan: Plan, *, last: bool = False) -> None:
        """Have the newest state measured here, if it is its turn.

        Args:
            plan: Of the round that published it.
            last: Whether the run ends with it: then it is measured however often the others are.
        """
        if self._evaluator is None or not self._view.rows:
            return
        row = self._view.rows[-1]
        if row.accuracy is None and self._is_due(row.round) != last:
            self._ask((row.round, plan.training.generation))

    def evaluated(self, event: Evaluated) -> None:
        """The process has answered."""
        assert self._evaluator is not None
        self._evaluator.done(event)
        self._change(event.version, accuracy=event.accuracy, loss=event.loss, metrics=event.metrics)

    def keep(self, version: int, measured: NodesMeasured | None) -> None:
        """Keep what nodes measured of a version. Before the round that they measured it in counts: one that closes
        again after a kill keeps it again.

        Args:
            version: Of the state; 0: before anything was learned.
            measured: None: nothing.
        """
        if measured is None:
            return
        if version == 0:
            self._ledger.put_fact("measured_start", measured)
            self._view.start = measured
        else:
            self._change(version, nodes=measured)

    def pool(self, version: int, task: TaskSection) -> None:
        """Put together what nodes said of the run's last state.

        Args:
            version: The last.
            task: With its labels as a list.
        """
        self.keep(version, pooled(self._ledger.measurements(version), self.job.safety, task))

    def take(self, row: RoundRow) -> None:
        """Keep and show a round's row: of the round that was just published, or another one in place of what was shown.

        Args:
            row: What the round came to.
        """
        self._ledger.put_round(row)
        rows = self._view.rows
        # The ledger is not read again: it has what is shown. A list of its own each time, so that whoever looks sees by
        # the list itself that something changed.
        place = next((place for place in range(len(rows) - 1, -1, -1) if rows[place].round == row.round), len(rows))
        self._view.rows = [*rows[:place], row, *rows[place + 1 :]]
        self._view.standing = self._standings.of(self._view.rows)

    def _change(self, version: int, **numbers: object) -> None:
        row = next((row for row in reversed(self._view.rows) if row.round == version), None)
        if row is not None:
            self.take(msgspec.structs.replace(row, **numbers))


def _accuracy_of(row: RoundRow) -> float | None:
    """Of the coordinator's rows, else of the nodes'."""
    if row.accuracy is None and row.nodes is not None:
        return row.nodes.accuracy
    return row.accuracy
