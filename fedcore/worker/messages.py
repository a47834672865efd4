# SPDX-License-Identifier: Apache-2.0
"""What a supervisor (agent or coordinator) and its worker process say to each other: commands down, events up."""

from __future__ import annotations

import msgspec

from fedcore.config.adapters import AnyAdapter
from fedcore.config.sections import DataSection, TaskSection
from fedcore.device.memoryplan import Footprint, MemoryPlan
from fedcore.round.measurement import DEFAULT_NEW_TOKENS, Measurement
from fedcore.round.plan import ObjectKind, Plan
from fedcore.weights.schema import ModelSchema
from fedcore.worker.exchange import ArtefactMade, FileCommand, FileEvent, MakeArtefact
from fedcore.worker.parts import Begin, Begun, Finish, Finished, LoadPart, PartLoaded
from fedcore.worker.serving import (
    Answer,
    Answered,
    Classified,
    Classify,
    Generate,
    Generated,
    Load,
    Loaded,
    Stop,
    Token,
)
from fedcore.worker.work import Work, Worked

__all__ = [
    "Adopt",
    "Adopted",
    "ArtefactMade",
    "Command",
    "Configure",
    "Describe",
    "Described",
    "Evaluate",
    "Evaluated",
    "Event",
    "Failed",
    "MakeArtefact",
    "Measure",
    "Measured",
    "MeasuredState",
    "Progress",
    "Ready",
    "Route",
    "StepDown",
    "Trace",
    "Traced",
    "Train",
    "Trained",
    "Work",
    "Worked",
]


class Route(msgspec.Struct, frozen=True):
    """How a worker computes.

    Example:
        >>> Route("cpu", "bfloat16").words
        'bfloat16 on cpu'
    """

    torch_device: str = "cpu"
    compute_dtype: str = "float32"
    reason: str = ""
    """Why, for a person."""

    @property
    def words(self) -> str:
        """For status and log."""
        return f"{self.compute_dtype} on {self.torch_device}"


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Find out what of a model is trained for a task."""

    model_folder: str
    task: TaskSection
    trained_tensors: tuple[str, ...] = ()
    """Names (or patterns with `*`) of checkpoint tensors that are trained whole beside the new head."""
    adapter: AnyAdapter | None = None
    """Of the method; its tensors are then in the schema."""


class Trace(msgspec.Struct, frozen=True, kw_only=True, tag="trace"):
    """Read the data, and find out what training on it would keep in memory. No weight is loaded."""

    plan: Plan
    model_folder: str
    data: DataSection
    folder: str
    """The worker's own folder; traces are kept there for the next start."""
    threads: int = 1
    torch_device: str = "cpu"
    """`auto`: whichever is faster here. A worker whose first command leaves this open measures before it loads its
    libraries."""
    compute_dtype: str = "float32"
    """`auto`: bfloat16 where it is faster in both directions."""
    route_folder: str = ""
    """Where measurements of this machine are kept; empty: nowhere."""


class Configure(msgspec.Struct, frozen=True, kw_only=True, tag="configure"):
    """Load model and data for a plan's run. Cheap to repeat."""

    plan: Plan
    run: str
    node: str
    model_folder: str
    data: DataSection
    folder: str
    """The worker's own folder: states, master copies, finished intervals."""
    threads: int
    torch_device: str = "cpu"
    compute_dtype: str = "float32"
    memory: MemoryPlan = MemoryPlan(micro_batch_size=1)
    """Of this, what loading needs to know: length, mapped weights, allocator."""
    calibrate: bool = False
    """Measure two tiny steps once the model is loaded."""
    artefact: str = ""
    """File of the run's artefact, where the plan has one."""
    metrics: tuple[str, ...] = ()
    """What `Evaluate` measures beside what the task does: registered metrics, or `package.module:function`."""
    rows: int = 0
    """Of the data, at most so many (`fedcore.round.measurement.NodeEvaluation.rows`); 0 for all."""
    share_seed: int = 0
    """Decides which."""
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    """Of an answer, where one of `metrics` compares texts."""


class Adopt(msgspec.Struct, frozen=True, tag="adopt"):
    """Take a published object (a fetched file), and merge first where generations say so."""

    path: str
    version: int
    generation: int
    kind: ObjectKind
    digest: str


class Train(msgspec.Struct, frozen=True, tag="train"):
    """Train the plan's round from the held state and write the update to `path`; finished intervals on disk are not
    trained again."""

    plan: Plan
    path: str
    memory_steps: tuple[MemoryPlan, ...]
    """The memory plan to begin with, then smaller ones in order."""
    measured: Measurement | None = None
    """What was measured of the state that the round starts from; the update carries it."""


class StepDown(msgspec.Struct, frozen=True, tag="step_down"):
    """Go down to this one of the round's memory plans (`Train.memory_steps`) before the next micro-batch. Has no
    answer; `Progress` tells."""

    memory_step: int


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    """Measure the state that a plan starts from, on this node's held-out rows. What was measured before a kill lies on
    disk and is not measured again."""

    plan: Plan
    memory: MemoryPlan
    """Of training: measuring keeps less, with as many examples at a time."""
    answers_at_once: int = 1
    """Answers side by side that there is memory for, where metrics compare texts."""


class Evaluate(msgspec.Struct, frozen=True, tag="evaluate"):
    """Measure the held state on the configured data."""

    version: int


Command = (
    Describe
    | Trace
    | Configure
    | Adopt
    | Measure
    | Train
    | StepDown
    | Evaluate
    | FileCommand
    | Answer
    | Load
    | Generate
    | Classify
    | Stop
    | LoadPart
    | Begin
    | Finish
    | Work
)


class Described(msgspec.Struct, frozen=True, tag="described"):
    """Answer to `Describe`."""

    model_schema: ModelSchema
    task: TaskSection
    """With its labels as a list, also where the job names a function."""
    notes: tuple[str, ...] = ()
    """What a person should know of the model: what becomes of a head that it has, and how far it is from
    transformers' own."""


class Traced(msgspec.Struct, frozen=True, tag="traced"):
    """Answer to `Trace`."""

    footprint: Footprint
    examples: int
    route: Route = Route()
    """How it will compute."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A tiny step's peak, for calibration."""

    micro_batch_size: int
    length: int
    static_bytes: int
    """Resident before the step."""
    peak_bytes: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Model and data are loaded; what this replica holds from earlier."""

    version: int
    generation: int
    digest: str
    examples: int
    measured: tuple[Measured, ...] = ()
    peak_bytes: int | None = None
    """Highest resident size of the worker until now."""
    accelerator_bytes: int | None = None
    """What the worker holds of an accelerator's memory; None on a processor."""
    cut: int = 0
    """Rows that lost a part because they were too long (`task.too_long`)."""
    left_out: int = 0
    """Rows that were left out for it."""
    trivial: float | None = None
    """What the best single answer to all of them scores, by the number called accuracy; None where that compares with
    nothing."""

    @property
    def too_long(self) -> str:
        """What became of rows that were too long, in words that go on a sentence; empty where none was."""
        cut = f"{self.cut:,} of them cut" if self.cut else ""
        left_out = f"{self.left_out:,} rows left out" if self.left_out else ""
        said = " and ".join(filter(None, (cut, left_out)))
        return said and f", {said} as too long"


class Adopted(msgspec.Struct, frozen=True, tag="adopted"):
    """The replica is now at `version`, with this model digest."""

    version: int
    generation: int
    digest: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """An optimiser step is done."""

    step: int
    steps: int
    loss: float
    memory_step: int = 0
    """Which of the round's memory plans (`Train.memory_steps`) the worker is at."""
    peak_bytes: int | None = None
    """Highest resident size of the worker during the step."""
    accelerator_bytes: int | None = None
    """What the worker holds of an accelerator's memory; None on a processor."""


class Trained(msgspec.Struct, frozen=True, tag="trained"):
    """The update is on disk."""

    round: int
    path: str
    examples: int
    loss: float
    seconds: float
    restored: int = 0
    """Intervals that lay finished on disk."""
    steps: int = 0
    """Optimiser steps of the round, with those of restored intervals."""
    batch_size: int = 0
    """Examples in each; `examples` are all that they are drawn from."""


class MeasuredState(msgspec.Struct, frozen=True, tag="measured_state"):
    """Answer to `Measure`."""

    version: int
    measurement: Measurement | None
    """None on a node without held-out rows."""
    seconds: float


class Evaluated(msgspec.Struct, frozen=True, tag="evaluated"):
    """Metrics of a version on the evaluation data."""

    version: int
    accuracy: float
    loss: float
    metrics: dict[str, float]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A command failed; the worker lives on. Made and read by `fedcore.worker.failures`."""

    kinds: tuple[str, ...]
    """Names of the error's classes, nearest first."""
    message: str
    place: str
    remedy: str


Event = (
    Described
    | Traced
    | Ready
    | Adopted
    | MeasuredState
    | Progress
    | Trained
    | Evaluated
    | FileEvent
    | Answered
    | Loaded
    | Token
    | Generated
    | Classified
    | PartLoaded
    | Begun
    | Finished
    | Worked
    | Failed
)
