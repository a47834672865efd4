# SPDX-License-Identifier: Apache-2.0
"""A job's search from its files: rows, model, what can be tried, and what is told."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from coordinator.job import Job
from edge_client.worker.adapters.attaching import with_adapter
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.heldout import place_of
from edge_client.worker.data.reading import Example, resolved_task
from edge_client.worker.data.tasks import encode
from edge_client.worker.model.describing import describe
from fedcore.config.sections import HeadSection
from fedcore.config.tasks import task_of
from fedcore.config.templates import with_template
from fedcore.data.splits import Split, parse_split
from fedcore.errors import ConfigError
from fedcore.fields.types import HeadBegin
from fedcore.methods import server_half
from fedcore.methods.beside.heads import settled_again
from fedcore.methods.fed3r import settled_head
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.imported import model_folder
from fedkrso.simulation import Simulation, Wishes, steps_for
from fedkrso.tuning.search import FACTORS, Kept, job_lines, search, table
from fedkrso.tuning.trials import Rows, Trials

__all__ = ["Tuning"]


class Tuning:
    """A search, read and checked; nothing is tried before `run`.

    Args:
        job_file: JOB.toml.
        rounds: Of each trial.
        factors: On the job's rates; None for the usual ones.
        head: `both`, or the only start that is tried.
        rows: Of each node at most.
        held_rows: Measured on at most.
        threads: None for all of the machine's.
        out: Folder of the trials; None for one beside the job.
        data: As `Wishes` has it; so are the columns.
        nodes: How many get a part of it.
        split: How, in words.

    Raises:
        FedkrsoError: A file is wrong, or the method cannot be tried so.
    """

    def __init__(
        self,
        job_file: Path,
        *,
        rounds: int,
        factors: Sequence[float] | None,
        head: str,
        rows: int,
        held_rows: int,
        threads: int | None,
        out: Path | None,
        **dealing: Any,
    ) -> None:
        self._rounds, self._factors, self._rows = rounds, tuple(factors or FACTORS), rows
        wishes = _wishes(dealing)
        simulation = Simulation(job_file, wishes)
        job = simulation.job
        training = server_half(job.method).training(1, job.seed)
        if training.artefact_kind is not None or not training.shares_model:
            what = "needs a run artefact" if training.shares_model else "has no model that nodes share"
            raise ConfigError(f"{job.method.described()} {what}", place="method", remedy="tune another method's rates")
        self._out = out or job_file.absolute().parent / f"{job.run}-tune"
        folder = model_folder(job.model.folder, self._out / ".models", place="model.folder")
        task, _ = resolved_pooling(folder, resolved_task(with_template(job.task)))
        schema = describe(Checkpoint(folder), task, job.model.trained_tensors)
        self._schema = with_adapter(schema, folder, task, job.method.adapter)
        self._job, self._folder = msgspec.structs.replace(job, task=task), folder
        torch.set_num_threads(threads or os.cpu_count() or 1)
        self._examples = _limited(simulation, self._job, rows, held_rows)
        self._heads = self._starts(head)
        begins, last = HeadSection(start="ridge", again=job.head.again), job.round
        settled = settled_again(begins, last.rounds, buffered=last.buffered, averaged=last.average_last > 1)
        self._ends = settled.comes_again

    def _starts(self, wanted: str) -> Sequence[HeadBegin]:
        job = self._job
        if task_of(job.task).outputs() is None:
            return ("random",)
        training, rule = server_half(job.method).training(1, job.seed), job.safety.combining()
        can = settled_head(HeadSection(), job.task, training, rule, self._schema, self._rounds).start == "ridge"
        if wanted == "ridge" and not can:
            raise ConfigError("this job's head cannot begin with sums", place="--head", remedy="try random")
        if wanted == "both":
            return ("ridge", "random") if can else ("random",)
        return ("ridge",) if wanted == "ridge" else ("random",)

    def about(self) -> Iterator[str]:
        """Lines on what will be tried."""
        held = len(self._examples[""])
        counts = [len(rows) for name, rows in self._examples.items() if name]
        yield (
            f"{len(self._heads) * len(self._factors)} trials of {self._rounds} rounds"
            f"{' and a head at the end' if self._ends and 'ridge' in self._heads else ''}: {len(counts)} nodes with"
            f" {min(counts)} to {max(counts)} rows, measured on {held} held-out rows; kept in {self._out}"
        )

    def run(self, tell: Callable[[str], None]) -> Iterator[str]:
        """Try, and then lines on what was found.

        Args:
            tell: Gets a line after each round.
        """
        job, method = self._job, self._job.method
        kept = Kept(self._out / "tried.json", self._decisive())
        tokenizer = read_tokenizer(self._folder)
        encoded = {name: encode(rows, job.task, tokenizer) for name, rows in self._examples.items()}
        held = encoded.pop("")
        scratch = Path(tempfile.mkdtemp(prefix="trials-", dir=_made(self._out)))
        try:
            trials = Trials(job, self._schema, self._folder, Rows(encoded, held), scratch)
            best = search(trials, kept, self._heads, self._rounds, self._factors, tell, ends=self._ends)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        yield ""
        yield from table(kept.all, method)
        frozen = [one.rounds[0].accuracy for one in kept.all if one.trial.head == "ridge" and one.rounds]
        if frozen:
            yield f"frozen features, the head alone: accuracy {frozen[0]:.3f}"
            if best.rounds[-1].accuracy < frozen[0]:
                yield 'no trial is above them: more rounds, lower rates, or name = "fed3r" for the head alone'
        yield ""
        yield f"best by accuracy on {len(held)} held-out rows after {self._rounds} rounds; for {job.run}'s job file:"
        yield ""
        counts = [len(rows) for rows in encoded.values()]
        # Rows that were left out for the trials are there in the run.
        steps = 0 if max(counts) >= self._rows else steps_for(counts, method)
        has_head = task_of(job.task).outputs() is not None
        yield from job_lines(best, method, 0 if steps == method.steps else steps, head=has_head)

    def _decisive(self) -> bytes:
        """All that decides what comes of a trial."""
        job = self._job
        rows = {
            name: [(one.text, one.text_pair, repr(one.target)) for one in own] for name, own in self._examples.items()
        }
        facts = [job.model, job.task, job.method, job.safety, job.seed, rows, self._rounds, self._ends]
        return msgspec.json.encode(facts)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _wishes(dealing: dict[str, Any]) -> Wishes:
    keys = ("text", "text_pair", "label")
    columns = {key: dealing[key] for key in keys if dealing[key]}
    if dealing["data"] is None and (dealing["nodes"] or dealing["split"] or columns):
        raise ConfigError("there is nothing to deal without --data", place="--nodes, --split", remedy="add --data FILE")
    split = parse_split(dealing["split"]) if dealing["split"] else Split("iid")
    return Wishes(data=dealing["data"], nodes=dealing["nodes"] or 4, split=split, columns=columns)


def _limited(simulation: Simulation, job: Job, rows: int, held_rows: int) -> dict[str, list[Example]]:
    """Examples of each node, and under no name those that are measured on; where there are none, a tenth of each
    node's."""
    found = dict(simulation.examples(job.task))
    held = found.pop("", None)
    if held is None:
        share = job.evaluation.share if job.evaluation is not None and job.evaluation.share else 0.1
        apart = {name: [place_of(one, 0) < share for one in own] for name, own in found.items()}
        held = [one for name, own in found.items() for one, out in zip(own, apart[name], strict=True) if out]
        found = {
            name: [one for one, out in zip(own, apart[name], strict=True) if not out] for name, own in found.items()
        }
    if not held or not all(found.values()):
        raise ConfigError("too few rows to train and to measure on", place="data", remedy="add rows")
    return {"": _spread(held, held_rows), **{name: _spread(own, rows) for name, own in found.items()}}


def _spread(examples: list[Example], most: int) -> list[Example]:
    """At most so many, evenly over all.

    Example:
        >>> _spread([Example(str(number), None, None) for number in range(5)], 2)[1].text
        '2'
    """
    if len(examples) <= most:
        return examples
    return [examples[number * len(examples) // most] for number in range(most)]
