# SPDX-License-Identifier: Apache-2.0
"""The round engine: what a run has learned, the base and the exact state on it, and what is published of both.

A round is `begin`, `plan`, the participants' updates (`coordinator.rounds.policy.admit`), `close`, `publish`. The
coordinator's loop, the paper's experiment and the tests of methods all run their rounds through it: they bring the wire
and the clock, which are not here, and say by `coordinator.run.keeping.Keeping` what outlives a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from coordinator.channel.errors import channel_training
from coordinator.rounds.policy import Outlier, Shares, clips_beside, outliers, round_shares
from coordinator.run.keeping import Keeping
from coordinator.run.learning import Learning
from coordinator.run.measured import pooled
from coordinator.run.private import require_noise
from coordinator.secure.leading import Sum
from coordinator.store.ledger import RoundRow, UpdateRow
from coordinator.store.rows import NodesMeasured
from coordinator.work.order import Order, order_of
from coordinator.work.working import performed
from fedcore.config.sections import HeadSection
from fedcore.errors import BaseDamaged
from fedcore.methods import server_half
from fedcore.model.base import Base
from fedcore.model.state import ExactState, PublishedState, model_digest
from fedcore.model.update import Adder, HandedOut, WeightedUpdate, add_updates, check_update
from fedcore.numbers.clip import Clip
from fedcore.numbers.rules import Mean, Rule
from fedcore.privacy.noise import NoisyMean
from fedcore.round.artefact import read_artefact
from fedcore.round.checksums import checksums
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import ArtefactObject, Plan, StateObject
from fedcore.round.staleness import product
from fedcore.round.training import AnyTraining, Training
from fedcore.weights.checkpoint import Checkpoint
from fedcore.wire.files import manifest_of
from fedcore.worker.work import WORKS

__all__ = ["Closed", "GlobalModel", "Learning"]


@dataclass(frozen=True)
class Closed:
    """A round whose published state is written; it counts once it is published.

    Attributes:
        objects: The published state: whole, then the difference to the version before where there is one. All have the
            digest of the model.
        row: What the round came to; bytes and seconds are zero, who measures them fills them in.
        limit: The largest claim of examples that counted in full.
        measured: What the participants measured of the state that the round started from; None where they did not.
        outliers: Participants whose update is far larger than others.
    """

    objects: list[StateObject]
    row: RoundRow
    limit: int
    measured: NodesMeasured | None = None
    outliers: Mapping[str, Outlier] = field(default_factory=dict)

    def notes(self) -> Iterator[tuple[str, str, str]]:
        """What an operator is told of participants: kind, node and words."""
        for node, (claimed, weight) in self.row.capped.items():
            words = f"{claimed} examples count as {weight}, at most {self.limit} may"
            yield "capped", node, f"round {self.row.round}: {words}"
        for node, far in self.outliers.items():
            words = f"norm {far.norm:.6g} where the median is {far.median:.6g}: scaled by {far.clip.factor:.6g}"
            yield "outlier", node, f"round {self.row.round}: {words}"


class _Counted(NamedTuple):
    """What a round's updates count, by participant: `weighted` has it all, the rest is for the round's row."""

    headers: dict[str, UpdateHeader]
    rule: Rule
    shares: Shares
    norms: dict[str, float]
    far: Mapping[str, Outlier]
    clips: Mapping[str, Clip | None]
    stale: Mapping[str, tuple[int, Clip | None]]
    weighted: list[WeightedUpdate]


class GlobalModel:
    """The model of a run, from its start or as an earlier life of the run left it.

    Args:
        learning: What is learned.
        keeping: What outlives a round.
        published: Rounds that were closed.
        adder: Who adds updates up.

    Attributes:
        base: With what earlier generations learned merged into it.
        state: The exact state on it.
        published: The newest published state.
        artefact: What the run's artefact holds; None where the method asks for none.

    Raises:
        FedkrsoError: The model cannot serve as the base, or what is on disk is not the run's.
    """

    def __init__(self, learning: Learning, keeping: Keeping, published: int, adder: Adder = add_updates) -> None:
        self._learning, self._keeping, self._folder, self._adder = learning, keeping, keeping.folder, adder
        self._half = server_half(learning.method, learning.artefact, learning.head)
        schema, first = learning.schema, self.training(1)
        self.artefact = read_artefact(self._folder.artefact, first, schema)
        self.base = Base(Checkpoint(learning.model_folder), schema, learning.base_kind, self._folder.base)
        opened = keeping.resume(self.base, published)
        self._checkpoint_digest = keeping.checkpoint_digest()
        self.state = keeping.load_state(published) if published else ExactState.zero(first, schema)
        self.published = self.state.publish()
        if opened is not None:
            # The round was open: its state is in the plan's subspaces, also when it is the first of a generation.
            self.state = self._opened(opened.training)

    def follow(self, head: HeadSection) -> None:
        """Have other rounds than before be a head's, of those that have not begun."""
        self._learning = replace(self._learning, head=head)
        self._half = server_half(self._learning.method, self._learning.artefact, head)

    def training(self, server_round: int) -> AnyTraining:
        """What a round trains."""
        learning, made = self._learning, self._half.training(server_round, self._learning.seed)
        private = None if learning.private is None else learning.private.said
        over = None if learning.channel is None else channel_training(learning.channel, learning.seed, server_round)
        return msgspec.structs.replace(made, privacy=private, channel=over)

    def begin(self, server_round: int, chunk_bytes: int, damaged: Callable[[str], None]) -> None:
        """Stand where a round starts: where seeds change, with what was learned merged into the base, and a snapshot of
        it if one is due.

        Args:
            server_round: Which.
            chunk_bytes: Of transfers.
            damaged: Told of files that had to be made anew.
        """
        training = self.training(server_round)
        if training.generation != self.base.generation:
            self._merge(training.generation, damaged)
        self._keeping.begin(self.base, self.start_state(training), chunk_bytes)
        self.state = self._opened(training)

    def plan(self, server_round: int, cohort: tuple[str, ...], deadline_at: float, chunk_bytes: int) -> Plan:
        """A round's plan, from the version that was published last.

        Args:
            server_round: Which.
            cohort: Who is invited.
            deadline_at: Unix time in seconds.
            chunk_bytes: Of transfers.
        """
        learning, training, version = self._learning, self.training(server_round), self.published.version
        return Plan(
            round=server_round,
            phase="train",
            cohort=cohort,
            deadline_at=deadline_at,
            task=learning.task,
            base_kind=learning.base_kind,
            base_digest=self.base.digest(),
            model_schema=learning.schema,
            checksums=checksums(training, learning.schema, self.artefact),
            training=training,
            version=version,
            chunk_bytes=chunk_bytes,
            objects=self._keeping.listed(version, training.generation),
            start_digest=self._start_digest(training),
            checkpoint_digest=self._checkpoint_digest,
            artefact=ArtefactObject(manifest_of(self._folder.artefact, chunk_bytes)) if training.artefact else None,
            evaluation=learning.evaluation.asked(learning.task, version) if learning.evaluation is not None else None,
            run_id=learning.run_id,
            secure=learning.asked(len(cohort), training) if cohort else None,
            max_staleness=learning.staleness.allowed(server_round),
        )

    def close_sum(self, found: Sum, chunk_bytes: int) -> Closed:
        """As `close`, of updates of which the sum alone is known; of nobody's, the state stays as it was.

        Args:
            found: The sum.
            chunk_bytes: Of transfers.
        """
        plan, people = found.plan, found.participants
        self._take(self._half.aggregate(self.state, plan, found.unmasked), plan)
        objects = self._write(plan, chunk_bytes)
        self._keeping.save_state(self.state)
        return Closed(objects, RoundRow(plan.round, people, 0, 0, 0.0, found.unmasked.loss / max(1, len(people))), 0)

    def order(self, plan: Plan, updates: Sequence[UpdateRow]) -> Order | None:
        """What a worker has to do before a round can be closed; None where the sum of its updates is what it comes to.

        Args:
            plan: The round's.
            updates: Of the participants, as they were admitted.
        """
        if not plan.training.work:
            return None
        learning, start = self._learning, self.start_state(plan.training)
        weighted, digest = self._counted(plan, updates).weighted, model_digest(self.base.digest(), start)
        folder, room = self._folder.root / "work", learning.method.work_memory_bytes
        return order_of(plan, updates, weighted, (start, digest), learning.model_folder, folder, room)

    def close(self, plan: Plan, updates: Sequence[UpdateRow], chunk_bytes: int, done: Order | None = None) -> Closed:
        """Take a round's updates into the state, each with its share, or what work made of them, and write its
        published state and the state to disk.

        Args:
            plan: The round's.
            updates: Of the participants, as they were admitted.
            chunk_bytes: Of transfers.
            done: `order`, where there is one and it is done; else it is done here.

        Raises:
            UpdateRefused: An update's file is not what was admitted any more.
        """
        found = self._counted(plan, updates)
        headers, said, weighted = found.headers, plan, found.weighted
        loss = sum(header.loss for header in headers.values()) / len(headers)
        if (order := done or self.order(plan, updates)) is not None:
            order = done or performed(order)
            said = msgspec.structs.replace(plan, training=plan.training.worked)
            header = check_update(order.path, said, WORKS, WORKS).header
            weighted, loss = [WeightedUpdate(order.path, header, 1)], header.loss
        # A method that only has the mean takes no rule: jobs with another one are refused.
        chosen = () if type(found.rule) is Mean else (found.rule,)
        self._take(self._half.aggregate(self.state, said, HandedOut(weighted, self._adder), *chosen), plan)
        if isinstance(found.rule, NoisyMean):
            require_noise(found.rule)
        objects = self._write(plan, chunk_bytes)
        self._keeping.save_state(self.state)
        row = RoundRow(
            plan.round,
            participants=tuple(headers),
            uplink_bytes=0,
            downlink_bytes=0,
            seconds=0.0,
            train_loss=loss,
            norms=found.norms,
            clipped={node: clip.factor for node, clip in found.clips.items() if clip is not None},
            capped={node: (headers[node].examples, found.shares.weights[node]) for node in found.shares.capped},
            stale={
                node: (behind, 1.0 if clip is None else clip.factor) for node, (behind, clip) in found.stale.items()
            },
        )
        measured = {node: header.measured for node, header in headers.items() if header.measured is not None}
        pool = pooled(measured, self._learning.safety, self._learning.task)
        return Closed(objects, row, found.shares.limit, pool, found.far)

    def _take(self, state: ExactState, plan: Plan) -> None:
        """Have a round's state; after the last one it is the mean of the last ones where the job says so."""
        self.state = self._learning.last.after(state, plan.round)

    def _counted(self, plan: Plan, updates: Sequence[UpdateRow]) -> _Counted:
        """What each of a round's updates counts, and why."""
        headers = {row.header.node: row.header for row in updates}
        rule: Rule = self._learning.safety.combining()
        if (private := self._learning.private) is not None:
            rule = private.rule(plan, updates, self._keeping.noise_key(plan.round)) or rule
        share = plan.training.share if rule.weighted else "uniform"
        claimed = {node: header.examples for node, header in headers.items()}
        shares = round_shares(claimed, share, self._learning.safety)
        norms = {row.header.node: row.norm for row in updates if row.norm is not None}
        alike = self._keeping.norms(lambda number: self.training(number).phase == plan.training.phase)
        far = outliers(norms, alike, self._learning.safety)
        clips = clips_beside({row.header.node: row.clip for row in updates}, far)
        stale = self._learning.staleness.behind(plan.version, {node: one.version for node, one in headers.items()})
        scaled = {node: product(clip, stale[node][1] if node in stale else None) for node, clip in clips.items()}
        weighted = [
            WeightedUpdate(self._folder.root / row.file, row.header, shares.weights[node], scaled[node])
            for node, row in zip(headers, updates, strict=True)
        ]
        return _Counted(headers, rule, shares, norms, far, clips, stale, weighted)

    def publish(self, objects: list[StateObject], row: RoundRow) -> None:
        """Have a closed round count. What comes before it is repeated after a kill, what comes after it may be told.

        Args:
            objects: Of `Closed`.
            row: Of `Closed`, with what was measured.
        """
        self._keeping.publish(objects, row)

    def start_state(self, training: Training) -> PublishedState:
        """The published state in a round's subspaces: what a replica holds as it begins.

        Args:
            training: The round's.
        """
        if self.published.seeds == training.seeds:
            return self.published
        return self.published.refreshed(training, self._learning.schema)

    def _write(self, plan: Plan, chunk_bytes: int) -> list[StateObject]:
        """Publish the state: its files, and what is said about them."""
        previous, self.published = self.published, self.state.publish()
        digest = model_digest(self.base.digest(), self.published)
        objects = []
        for whole in (True, False):
            if not whole and (previous.version == 0 or not self.published.follows(previous)):
                continue
            path = self._folder.published_state(plan.round, "whole" if whole else "difference")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.published.write(path, previous=None if whole else previous)
            base_version = None if whole else previous.version
            objects.append(
                StateObject(plan.round, plan.training.generation, base_version, digest, manifest_of(path, chunk_bytes))
            )
        return objects

    def _merge(self, generation: int, damaged: Callable[[str], None]) -> None:
        try:
            self.base.merge(self.published, generation)
        except BaseDamaged as error:
            damaged(f"{error.one_line()}: made anew from what was published")
            self._keeping.rebuild(self.base, self.published.version)
            self.base.merge(self.published, generation)

    def _opened(self, training: Training) -> ExactState:
        """The exact state that a round starts from: the same, or zero layers under new seeds."""
        state = self.state
        return state if state.seeds == training.seeds else state.refreshed(training, self._learning.schema)

    def _start_digest(self, training: Training) -> str:
        """The model digest that a round starts from; empty before its merge."""
        if training.generation != self.base.generation:
            return ""
        return model_digest(self.base.digest(), self.start_state(training))
