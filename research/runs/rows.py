# SPDX-License-Identifier: Apache-2.0
"""What a run is and what it gives, as files: `setup.json`, `rows.jsonl` with a line for each measurement,
`finished`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fedcore.config.sections import HeadSection
from fedcore.device.memoryplan import Allocator
from fedcore.fields.types import BaseKind, HeadBegin, Pooling
from fedcore.methods import AnySettings

__all__ = ["ComputeDtype", "Count", "Row", "RunFiles", "Setup", "rounds_done"]

ComputeDtype = Literal["float32", "bfloat16"]
Count = Annotated[int, Meta(ge=1)]


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one run is; two runs of equal setup give equal rows but for times and memory."""

    label: str
    """The method with its options, as the tables name it."""
    method: AnySettings
    task: str
    split: str
    seed: Annotated[int, Meta(ge=0)]
    rounds: Count = 10
    measure_every: Count = 1
    """Rounds from one measurement, and row, to the next; the last round is always measured, and so is the last before
    each new head."""
    clients: Count = 10
    max_length: Annotated[int, Meta(ge=2)] = 64
    """Tokens of an example."""
    most_train: Annotated[int, Meta(ge=0)] = 4000
    """Rows that clients share at most; 0 for all."""
    most_held: Count = 2000
    """Rows held out of the training file at most, and as many to tune on."""
    most_dev: Annotated[int, Meta(ge=0)] = 0
    """Rows of the development set at most; 0 for all."""
    calibration_rows: Count = 512
    """Tuning rows whose text, without labels, a method's run artefact is made from."""
    head: HeadBegin = "random"
    """What a new head begins with; `ridge` takes the first round."""
    pooling: Pooling = "model"
    """What of a text a new head looks at, as `task.pooling` of a job."""
    again: Annotated[int, Meta(ge=0)] = 0
    """As `head.again` of a job."""
    average_last: Count = 1
    """As `round.average_last` of a job."""
    base: BaseKind = "int8"
    trained_tensors: tuple[str, ...] = ()
    """Patterns of checkpoint tensors that are trained whole beside a new head."""
    micro_batch_size: Count = 32
    allocator: Allocator = "tuned"
    """`default` is faster by a fifth, and its peaks say less of the method."""
    compute: ComputeDtype = "float32"
    """dtype of the large products on a processor; a GPU computes in bfloat16, and FedAvg everywhere in float32."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Probability that a client misses a round."""
    model: str = ""
    """As the command line named it."""
    tune: bool = False
    """Measure on the tuning rows alone: for choosing a learning rate."""

    @property
    def heads(self) -> HeadSection:
        """A job's section; a method's rates are those that its brackets and its tuning say."""
        return HeadSection(start=self.head, rates=1.0, again=self.again)

    def is_measured(self, server_round: int) -> bool:
        """Whether there is a row for the model after a round; the last before each new head has one, so that what the
        head changes can be told."""
        ends = server_round == self.rounds or self.heads.is_head(server_round + 1)
        return ends or server_round % self.measure_every == 0

    @property
    def name(self) -> str:
        """What is run, in words for people."""
        dropout = f", dropout {self.dropout:g}" if self.dropout else ""
        tune = f", learning rate {self.method.learning_rate:g}" if self.tune else ""
        return f"{self.label} on {self.task}, {self.split}, seed {self.seed}{dropout}{tune}"

    @property
    def place(self) -> str:
        """The run's folder below that of all runs; safe on every disk."""
        label = self.label.replace("[", "-").replace("]", "").replace(",", "-")
        dropout = f"-dropout-{self.dropout:g}" if self.dropout else ""
        tune = f"-rate-{self.method.learning_rate:g}" if self.tune else ""
        folder = f"{'tuning' if self.tune else 'runs'}/{self.task}-{self.split.replace(':', '-')}"
        return f"{folder}/{label}/seed-{self.seed}{dropout}{tune}"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement, and the rounds since the one before. Bytes are of all clients together, since the run began."""

    label: str
    task: str
    split: str
    seed: int
    dropout: float
    round: int
    dev: float | None
    """The task's metric on the development set; None in a run for tuning."""
    held: float
    """The task's metric on rows of the training file that were held out, or on the tuning rows."""
    loss: float
    """On the same rows as `held`."""
    metrics: dict[str, float]
    train_loss: float
    """Mean over the updates of these rounds."""
    uplink_bytes: int
    downlink_bytes: int
    published_bytes: tuple[dict[str, int], ...]
    """Of each of these rounds: size of each file that was published (`whole`, `difference`)."""
    peak_bytes: int | None
    """Highest resident memory of the process while clients trained."""
    accelerator_peak_bytes: int | None
    """The same of an accelerator's memory; None on a CPU."""
    seconds: float
    """Of training alone, all clients one after the other."""
    processor_seconds: float
    """The same in processor time, which other work on the machine does not lengthen."""
    clients: int
    """That took part in the last of these rounds."""
    examples: int
    """Of those clients."""
    digest: str

    @property
    def first_round(self) -> int:
        """The first of these rounds."""
        return self.round - len(self.published_bytes) + 1


def rounds_done(rows: Sequence[Row]) -> int:
    """The last round that was measured; 0 before the first."""
    return rows[-1].round if rows else 0


class RunFiles:
    """A run's folder.

    Args:
        folder: Of this run alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def setup(self) -> Path:
        """What the run is."""
        return self.folder / "setup.json"

    def read_setup(self) -> Setup:
        """It, as it was begun; OSError or msgspec.DecodeError where there is none."""
        return msgspec.json.decode(self.setup.read_bytes(), type=Setup)

    @property
    def log(self) -> Path:
        """What its process said."""
        return self.folder / "log.txt"

    @property
    def predictions(self) -> Path:
        """What the last model says of each row (`research.runs.predictions`)."""
        return self.folder / "predictions.npz"

    @property
    def scratch(self) -> Path:
        """States, bases and updates: only while the run goes on."""
        return self.folder / "scratch"

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return (self.folder / "finished").exists()

    def finish(self) -> None:
        """Mark the run as finished."""
        (self.folder / "finished").touch()

    def count_rows(self) -> int:
        """How many measurements are done; cheap, for who only looks on."""
        try:
            return (self.folder / "rows.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def count_rounds(self, setup: Setup) -> int:
        """How many rounds are done and measured; as cheap."""
        measured = [0, *filter(setup.is_measured, range(1, setup.rounds + 1))]
        return measured[min(self.count_rows(), len(measured) - 1)]

    def rows(self) -> list[Row]:
        """The measurements that are done; a line that was cut short is none, nor is what follows it."""
        rows: list[Row] = []
        try:
            lines = (self.folder / "rows.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return rows
        for line in lines:
            try:
                rows.append(msgspec.json.decode(line, type=Row))
            except msgspec.DecodeError:
                break
        return rows

    def keep(self, rows: list[Row]) -> None:
        """Have these rows and no others."""
        part = self.folder / "rows.jsonl.part"
        part.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        part.replace(self.folder / "rows.jsonl")

    def add(self, row: Row) -> None:
        """Add a measurement; it is on the disk when this returns."""
        with (self.folder / "rows.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())
