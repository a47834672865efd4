# SPDX-License-Identifier: Apache-2.0
"""What a run learns, and how: all that decides a round's result beside the updates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coordinator.job import EvaluationSection, SafetySection
from coordinator.run.prepare import Prepared
from coordinator.run.private import Private, masks_of
from fedcore.config.channel import ChannelSection
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.fields.types import BaseKind
from fedcore.methods.beside.secure import SecureSection
from fedcore.methods.interface import MethodSettings
from fedcore.model.averaging import LAST_ALONE, LastStates
from fedcore.round.secure import SecureRound
from fedcore.round.staleness import NONE_BEHIND, Staleness
from fedcore.round.training import AnyTraining
from fedcore.weights.schema import ModelSchema

__all__ = ["Learning"]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learned, and how: all that decides a round's result beside the updates.

    Attributes:
        method: Settings.
        seed: Of the run.
        task: What the model does; labels are a list.
        base_kind: How the frozen base is held.
        schema: What of the model is trained.
        model_folder: The checkpoint's.
        artefact: SHA-256 of the run's artefact in its folder; empty where the method asks for none.
        safety: What one participant may do to a round.
        evaluation: What is measured, and where; of what is learned it changes that rows held out are not trained on.
        run_id: Tells the run from every other of its name.
        head: What a new head begins with.
        secure: How updates are masked; None where they are not.
        private: What is promised of privacy; None for nothing.
        staleness: What updates that are behind count.
        last: Whose mean the run's last state is.
        channel: What local training's embeddings come over; None for nothing.
    """

    method: MethodSettings
    seed: int
    task: TaskSection
    base_kind: BaseKind
    schema: ModelSchema
    model_folder: Path
    artefact: str = ""
    safety: SafetySection = SafetySection()
    evaluation: EvaluationSection | None = None
    run_id: str = ""
    head: HeadSection = HeadSection()
    secure: SecureSection | None = None
    private: Private | None = None
    staleness: Staleness = NONE_BEHIND
    last: LastStates = LAST_ALONE
    channel: ChannelSection | None = None

    @classmethod
    def of(cls, prepared: Prepared, run_id: str) -> Learning:
        """Of a job."""
        job = prepared.job
        return cls(
            method=job.method,
            seed=job.seed,
            task=job.task,
            base_kind=job.model.base,
            schema=prepared.schema,
            model_folder=prepared.model_folder,
            artefact=prepared.artefact,
            safety=job.safety,
            evaluation=job.evaluation,
            run_id=run_id,
            head=job.head,
            secure=job.secure_aggregation,
            private=prepared.private,
            staleness=job.staleness,
            last=LastStates(job.round.average_last, job.round.rounds),
            channel=job.channel,
        )

    def asked(self, nodes: int, training: AnyTraining) -> SecureRound | None:
        """What a plan for so many nodes says of masks."""
        limits = self.safety.norm_bound, self.safety.max_examples
        return None if self.secure is None else masks_of(self.secure, self.private, nodes, limits, training.share)
