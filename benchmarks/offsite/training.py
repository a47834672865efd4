# SPDX-License-Identifier: Apache-2.0
"""A task on a few nodes, in one process, and the model that comes of it as a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from coordinator.job import Job, ModelSection, SafetySection
from coordinator.reports.export import export_model
from edge_client.worker.answering.finished import finished
from edge_client.worker.answering.scores import scores_of_texts
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.reading import Example, load_examples
from edge_client.worker.data.tasks import encode
from edge_client.worker.model.describing import describe
from fedcore.config.sections import BrokerSection, DataSection, TaskSection
from fedcore.data.splits import deal, parse_split
from fedcore.fields.types import HeadBegin
from fedcore.methods import settings_by_name
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.weights.checkpoint import Checkpoint
from fedkrso.tuning.trials import Measured, Rows, Trials

__all__ = ["NODES", "Data", "scores_in", "settings_of", "tune", "tune_nodes"]

NODES = 4
_TASK = TaskSection(kind="text-classification", labels=("0", "1"), max_length=64)


@dataclass(frozen=True)
class Data:
    """SST-2's rows.

    Attributes:
        train: The training file's, in a fixed random order: phrases of sentences, mostly.
        dev: The development set, whole sentences.
    """

    train: list[Example]
    dev: list[Example]

    @classmethod
    def read(cls, folder: Path) -> Data:
        """From the folder of GLUE's files."""
        files = ("SST-2/train.tsv", "SST-2/dev.tsv")
        train, dev = (
            load_examples(DataSection(source=str(folder / file), text="sentence", label="label"), _TASK)
            for file in files
        )
        return cls([train[index] for index in np.random.default_rng(1).permutation(len(train))], dev)


def tune(
    folder: Path, out: Path, train: Sequence[Example], dev: Sequence[Example], rounds: int, name: str, **keys: Any
) -> list[Measured]:
    """Train a model on four nodes with Dirichlet shares, round 1 for the head, and write it; accuracy on `dev` of each
    round.

    Args:
        folder: Where it begins.
        out: Where it is written.
        train: Rows that nodes share.
        dev: Rows that are measured.
        rounds: With the head's.
        name: The method.
        keys: Its settings.
    """
    task, _ = resolved_pooling(folder, _TASK)
    parts = deal([row.target for row in train], NODES, parse_split("dirichlet:0.5"), 0, least=8)
    nodes = {f"n{number}": [train[index] for index in part] for number, part in enumerate(parts)}
    return tune_nodes(folder, out, task, nodes, dev, rounds, "ridge", settings_of(name, **keys))


def settings_of(name: str, **keys: Any) -> FedKRSOSettings:
    """A method's, of FedKRSO's kind."""
    method = msgspec.convert({"name": name, **keys}, settings_by_name()[name])
    assert isinstance(method, FedKRSOSettings)
    return method


def tune_nodes(
    folder: Path,
    out: Path,
    task: TaskSection,
    nodes: Mapping[str, Sequence[Example]],
    dev: Sequence[Example],
    rounds: int,
    head: HeadBegin,
    method: FedKRSOSettings,
) -> list[Measured]:
    """Train a model on nodes with rows of their own, and write it; what it is worth on `dev` after each round.

    Args:
        folder: Where it begins.
        out: Where it is written.
        task: What is learned.
        nodes: Each node's rows.
        dev: Rows that are measured.
        rounds: With the head's, where one is made from sums.
        head: What a head begins with.
        method: How it is trained.
    """
    tokenizer, checkpoint = read_tokenizer(folder), Checkpoint(folder)
    schema = describe(checkpoint, task)
    job = Job(
        run="trials",
        model=ModelSection(folder=str(folder)),
        task=task,
        broker=BrokerSection(url="mqtts://localhost"),
        safety=SafetySection(max_share_ratio=10.0),
    )
    encoded = {name: encode(rows, task, tokenizer) for name, rows in nodes.items()}
    with tempfile.TemporaryDirectory() as scratch:
        made = Trials(job, schema, folder, Rows(encoded, encode(dev, task, tokenizer)), Path(scratch))
        found = list(made.rounds(method, head, rounds))
        assert made.model is not None
        state = made.model.state.publish()
        export_model(made.model.base, state, schema, task, made.model.training(rounds), out)
    return found


def scores_in(folder: Path, rows: Sequence[Example]) -> tuple[np.ndarray[Any, Any], float]:
    """What the model in a folder says of rows, (rows, 2), and how often it is right."""
    torch.set_num_threads(1)
    tokenizer = read_tokenizer(folder)
    task = finished(folder, folder, tokenizer).task
    said = np.array(scores_of_texts(folder, task, [(row.text, None) for row in rows], tokenizer))
    return said, float((said.argmax(1) == [row.target for row in rows]).mean())
