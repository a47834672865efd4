# SPDX-License-Identifier: Apache-2.0
"""A fleet's files on one machine: from a job and one data file, or a job and the node files beside it, to a folder of
ordinary job and node files. On real machines each would lie on its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import tomlkit
from tomlkit import TOMLDocument

from coordinator.job import Job
from coordinator.provisioning.broker import LocalBroker
from edge_client.node import Node
from edge_client.worker.data.reading import Example, check_row, example_of, load_examples, only_right
from fedcore.config.data import data_section
from fedcore.config.models import find_model
from fedcore.config.reading import load_config
from fedcore.config.sections import DataSection, TaskSection
from fedcore.config.tasks import task_of
from fedcore.config.words import converted
from fedcore.data.splits import Split, deal
from fedcore.errors import ConfigError, ModelError
from fedcore.methods import server_half
from fedcore.methods.interface import MethodSettings
from fedcore.worker.imported import model_folder

__all__ = ["Row", "Simulation", "Wishes", "steps_for"]

Row = Mapping[str, Any]
_HELD_OUT = "held-out.jsonl"
_SHOWN_LABELS = 4
_MOST_STEPS = 200
"""Of a round, whatever the data: replicas that went further apart say less together."""
# Of a job that names none.
_NO_BROKER: Final = {"url": "mqtt://localhost:1883", "insecure": True}
_BUDGET_SHARE = 0.6
"""Of the machine's memory, for all nodes together; what `auto` is for one."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a simulation does otherwise than its files say.

    Attributes:
        data: A data file (or `package.module:function`) to deal; None for the node files beside the job.
        nodes: How many get a part of it.
        split: How it is dealt.
        held_out: Share of the rows that evaluates, where the job has no [evaluation].
        columns: Of the data file, by key of `DataSection`; others are the evaluation's.
        run: Name of the run; empty for the job's.
        rounds: None for the job's.
        seed: Of the run and of the dealing; None for the job's.
        budget: Each node's memory; empty for the node files', or an equal part of the machine's.
    """

    data: str | None = None
    nodes: int = 4
    split: Split = Split("iid")
    held_out: float = 0.2
    columns: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    rounds: int | None = None
    seed: int | None = None
    budget: str = ""


class Simulation:
    """A job and its nodes, read, checked and dealt; nothing is written before `write`.

    Args:
        job_file: JOB.toml. Its [broker] and [trust] are not used and may be left out: a simulation has a broker of its
            own.
        wishes: What is to be otherwise.

    Raises:
        FedkrsoError: A file is wrong, or the data cannot be dealt so.
    """

    def __init__(self, job_file: Path, wishes: Wishes) -> None:
        given = load_config(job_file, Job, {"broker": _NO_BROKER})
        self.run = wishes.run or given.run
        self.seed = given.seed if wishes.seed is None else wishes.seed
        # The struct checks the new name too.
        self._job, self._wishes = msgspec.structs.replace(given, run=self.run, seed=self.seed), wishes
        self._document = tomlkit.parse(job_file.read_text(encoding="utf-8"))
        _anchor(self._document, msgspec.to_builtins(given))
        self._nodes: dict[str, TOMLDocument] = {}
        self._rows: dict[str, list[Row]] = {}
        self._section: DataSection | None = None
        self._steps = 0
        if wishes.data is None:
            self._nodes = _nodes_beside(job_file, given.run)
        else:
            self._deal(wishes.data)
            method = self._document.get("method", {})
            if not {"steps", "interval_steps"} & method.keys():
                counts = [len(rows) for name, rows in self._rows.items() if name != _HELD_OUT]
                self._steps = steps_for(counts, self._job.method)

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes'."""
        return tuple(self._nodes)

    @property
    def job(self) -> Job:
        """The job, with what is wished otherwise."""
        return self._job

    def examples(self, task: TaskSection) -> Iterator[tuple[str, list[Example]]]:
        """Each node's rows, and those that nobody trains on under no name, where there are some here.

        Args:
            task: The job's, with its labels as a list.
        """
        section = self._section
        for name in self._nodes:
            if section is None:
                data = converted(self._nodes[name].unwrap()["data"], DataSection, place="data")
                yield name, load_examples(data, task)
            else:
                rows = enumerate(self._rows[f"{name}.jsonl"])
                yield name, [example_of(row, f"{name}, row {number}", section, task) for number, row in rows]
        if section is not None and _HELD_OUT in self._rows:
            yield "", [example_of(row, _HELD_OUT, section, task) for row in self._rows[_HELD_OUT]]
        elif self._job.evaluation is not None and self._job.evaluation.here:
            yield "", load_examples(self._job.evaluation.data, task)

    def about(self) -> Iterator[str]:
        """A line for each part of the data: who has how many rows of which label."""
        if self._steps:
            yield f"method.steps = {self._steps}: about one pass over a node's rows in each round"
        for name, rows in self._rows.items():
            line = f"{name.removesuffix('.jsonl')}: {len(rows)} rows"
            kinds = Counter(str(kind) for kind in self._classes(rows))
            shown = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(_SHOWN_LABELS))
            more = f", {len(kinds) - _SHOWN_LABELS} more" if len(kinds) > _SHOWN_LABELS else ""
            yield f"{line} ({shown}{more})" if task_of(self._job.task).labelled else line

    def write(self, folder: Path, broker: LocalBroker) -> tuple[Path, dict[str, Path]]:
        """Write the files: `job.toml`, `NAME.toml` and the parts of the data.

        Args:
            folder: Where to; nodes keep their replicas in folders in it.
            broker: Where they will meet.

        Returns:
            The job file, and each node's file.
        """
        for name, rows in self._rows.items():
            data_section(rows, self._section, folder / name)
        # Once for all: each node would import a GGUF file for itself.
        cache = folder.parent / ".models"
        model = self._document["model"]
        assert isinstance(model, dict), "the job was read before"
        for table, key in ((model, "folder"), *((node, "model_folder") for node in self._nodes.values())):
            table[key] = _folder_of(str(table[key]), cache)
        job = folder / "job.toml"
        job.write_text(tomlkit.dumps(self._job_document(folder, broker)), encoding="utf-8")
        files = {}
        for name, node in self._nodes.items():
            node["run"], node["folder"] = self.run, str(folder / name)
            if self._wishes.budget:
                node["memory_budget"] = self._wishes.budget
            if name + ".jsonl" in self._rows:
                node["data"] = self._data_table(folder / f"{name}.jsonl")
            _connect(node, broker, name)
            files[name] = folder / f"{name}.toml"
            files[name].write_text(tomlkit.dumps(node), encoding="utf-8")
        return job, files

    def _job_document(self, folder: Path, broker: LocalBroker) -> TOMLDocument:
        job = self._document
        job["run"], job["seed"] = self.run, self.seed
        if self._steps:
            method = job.setdefault("method", tomlkit.table())
            method.setdefault("name", self._job.method.name)
            method["steps"] = self._steps
        rounds = job.setdefault("round", tomlkit.table())
        rounds["min_nodes"] = len(self._nodes)
        rounds["quorum"] = min(self._job.round.quorum, len(self._nodes))
        if self._wishes.rounds is not None:
            rounds["rounds"] = self._wishes.rounds
        if _HELD_OUT in self._rows:
            job["evaluation"] = self._data_table(folder / _HELD_OUT)
        _connect(job, broker, "coordinator")
        return job

    def _deal(self, source: str) -> None:
        """Rows of one source to nodes, and some to nobody."""
        task, wishes = self._job.task, self._wishes
        given = self._job.evaluation or DataSection(source="")
        if not task_of(task).labelled:
            given = msgspec.structs.replace(given, label=None)
        named = ":" in source and "/" not in source and not Path(source).exists()
        source = source if named else str(Path(source).absolute())
        # A function's arguments are the evaluation's, not this one's.
        section = msgspec.structs.replace(given, source=source, format="auto", arguments={}, **wishes.columns)
        self._section = msgspec.structs.replace(section, source="", format="jsonl")
        rows = _checked_rows(section, task)
        chance = np.random.default_rng([self.seed, len(rows)])
        held: set[int] = set()
        if self._job.evaluation is None and server_half(self._job.method).training(1, self.seed).shares_model:
            count = max(1, round(wishes.held_out * len(rows)))
            held = set(chance.permutation(len(rows))[:count].tolist())
            self._rows[_HELD_OUT] = [rows[index] for index in sorted(held)]
        dealt = [row for index, row in enumerate(rows) if index not in held]
        for number, part in enumerate(deal(self._groups(dealt), wishes.nodes, wishes.split, self.seed), 1):
            self._rows[f"node-{number}.jsonl"] = [dealt[index] for index in part]
            self._nodes[f"node-{number}"] = self._node_document(f"node-{number}")

    def _groups(self, rows: list[Row]) -> list[Hashable]:
        """What each row is dealt by."""
        column = self._wishes.split.column
        if not column:
            return self._classes(rows)
        if rows and column not in rows[0]:
            raise ConfigError(
                f"no column {column!r}", place="--split", remedy=f"columns: {', '.join(map(str, rows[0]))}"
            )
        return [str(row.get(column)) for row in rows]

    def _classes(self, rows: list[Row]) -> list[Hashable]:
        """A row's label, the whole number next to its score, or nothing for plain text."""
        assert self._section is not None
        label = self._section.label
        task = task_of(self._job.task)
        if label is None or not task.labelled:
            return [None] * len(rows)
        return [round(float(row[label])) if task.scale else str(row[label]) for row in rows]

    def _node_document(self, name: str) -> TOMLDocument:
        node = tomlkit.document()
        nodes = self._wishes.nodes
        node["node"] = name
        node["run"] = self.run
        node["model_folder"] = self._job.model.folder
        node["memory_budget"] = f"{100 * _BUDGET_SHARE / nodes:.4g}%"
        # Processes share the cores: more threads than cores would only wait for each other.
        node["threads"] = max(1, (os.cpu_count() or 1) // nodes)
        # Named, not "auto": the digest of a simulation must not depend on what a machine measured.
        node["compute_dtype"] = "float32"
        return node

    def _data_table(self, path: Path) -> Any:
        """A section that names rows of this simulation."""
        assert self._section is not None
        table = tomlkit.table()
        table["source"] = str(path)
        for key in ("text", "text_pair", "label", "messages", "prompt", "completion"):
            value = getattr(self._section, key)
            if value is not None and value != getattr(DataSection(source=""), key):
                table[key] = value
        return table


def steps_for(counts: Sequence[int], method: MethodSettings) -> int:
    """Steps of a round that goes about once over a node's rows, of the middle one of all nodes: whole intervals, no
    fewer than the method's own two, and no more than `_MOST_STEPS`.

    Example:
        >>> from fedcore.methods.fedkrso import FedKRSOSettings
        >>> [steps_for(counts, FedKRSOSettings()) for counts in ([5], [600, 640, 5000], [100_000])]
        [20, 40, 200]
    """
    wanted = sorted(counts)[len(counts) // 2] / method.batch_size
    whole = method.interval_steps
    return min(max(2, round(wanted / whole)), max(2, _MOST_STEPS // whole)) * whole


def _folder_of(model: str, cache: Path) -> str:
    """The folder of a GGUF file; what names a folder, or nothing, stays as it is for whoever opens it."""
    try:
        found = find_model(model, place="model.folder")
    except ModelError:
        return model
    return model if found.is_dir() else str(model_folder(model, cache, place="model.folder"))


def _checked_rows(section: DataSection, task: TaskSection) -> list[Row]:
    """All rows; a wrong one is told here with its line, and not by a node later."""

    def right(row: Row, place: str) -> Row:
        if isinstance(task.labels, str):
            check_row(row, place, section)
        else:
            example_of(row, place, section, task)
        return row

    return only_right(section, right)


def _nodes_beside(job_file: Path, run: str) -> dict[str, TOMLDocument]:
    """Node files of the job's run in its folder, by name of the node."""
    found: dict[str, TOMLDocument] = {}
    for path in sorted(job_file.absolute().parent.glob("*.toml")):
        try:
            document = tomlkit.parse(path.read_text(encoding="utf-8"))
        except (tomlkit.exceptions.TOMLKitError, OSError, UnicodeDecodeError):
            continue
        if "node" not in document or document.get("run") != run:
            continue
        node = load_config(path, Node)
        if node.node in found:
            raise ConfigError(f"another file has node {node.node!r} too", place=str(path), remedy="rename one")
        _anchor(document, msgspec.to_builtins(node))
        found[node.node] = document
    if not found:
        raise ConfigError(
            f"no node files of run {run!r} beside it", place=str(job_file), remedy="give rows to deal with --data FILE"
        )
    return found


def _anchor(table: Any, values: Mapping[str, Any]) -> None:
    """Put into a document what loading made of its paths: the copy lies in another folder."""
    for key, value in table.items():
        now = values.get(key)
        if isinstance(value, dict) and isinstance(now, dict):
            _anchor(value, now)
        elif isinstance(value, str) and isinstance(now, str) and value != now:
            table[key] = now


def _connect(document: TOMLDocument, broker: LocalBroker, user: str) -> None:
    for name in ("broker", "trust"):
        document.pop(name, None)
    for name, table in tomlkit.parse(broker.sections(user)).items():
        document[name] = table
