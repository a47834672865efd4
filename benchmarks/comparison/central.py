# SPDX-License-Identifier: Apache-2.0
"""What one machine with all rows comes to: plain `transformers`, all weights in float32, AdamW, a rate that rises for a
tenth of the steps and falls linearly after it. It is the figure that federated ones are read beside where a task is not
learned."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.tasks import Encoded, encode, pad
from fedcore.numbers.metrics import accuracy, matthews, spearman
from research.data.tasks import read_parts, task_by_name

__all__ = ["Central", "measured"]

_CPU: Final = torch.device("cpu")
_PAD: Final = 0


@dataclass(frozen=True)
class Central:
    """A run of it.

    Attributes:
        task: As `fedkrso bench paper --task` has it; a classification or a regression.
        learning_rate: The largest.
        epochs: Over all rows.
        rows: Of the training file at most; 0 for all.
        held: Held out, and as many tuning rows.
        dev: Rows of the development set at most; 0 for all.
        max_length: Tokens.
        batch_size: Rows of a step.
        seed: Of the order of rows and of the new head.
    """

    task: str
    learning_rate: float
    epochs: int
    rows: int = 0
    held: int = 1000
    dev: int = 0
    max_length: int = 128
    batch_size: int = 16
    seed: int = 0


def measured(run: Central, data: Path, folder: Path) -> Iterator[dict[str, float]]:
    """Train, and measure after each epoch on the tuning rows, those held out and the development set.

    Args:
        run: What.
        data: Folder of data sets.
        folder: Of the model.
    """
    task = task_by_name(run.task)
    parts = read_parts(task, data, run.max_length, most_train=run.rows, most_held=run.held, most_dev=run.dev)
    tokenizer = read_tokenizer(folder)
    train = encode([row.example for row in parts.train], parts.section, tokenizer)
    apart = {
        name: encode(rows, parts.section, tokenizer)
        for name, rows in (("tune", parts.tune), ("held", parts.held), ("dev", parts.dev))
    }
    torch.manual_seed(run.seed)
    outputs = len(parts.section.labels) or 1
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=outputs)
    steps = run.epochs * (len(train) // run.batch_size)
    adam = torch.optim.AdamW(model.parameters(), lr=run.learning_rate)
    rate = get_linear_schedule_with_warmup(adam, steps // 10, steps)
    order = np.random.default_rng(run.seed)
    used = 0.0
    for epoch in range(run.epochs):
        begun = time.process_time()
        _train(model, adam, rate, [train[index] for index in order.permutation(len(train))], run.batch_size)
        used += time.process_time() - begun
        found = {name: _metric(task.metric, model, rows) for name, rows in apart.items()}
        yield {"epoch": epoch + 1, **found, "seconds": round(used, 1)}


def _train(model: Any, adam: Any, rate: Any, rows: Sequence[Encoded], size: int) -> None:
    model.train()
    for start in range(0, len(rows) - size + 1, size):
        batch = rows[start : start + size]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**pad(batch, _PAD, _CPU)).logits.float()
        wanted = torch.tensor([one.target for one in batch])
        if logits.shape[1] == 1:
            loss = torch.nn.functional.mse_loss(logits[:, 0], wanted.float())
        else:
            loss = torch.nn.functional.cross_entropy(logits, wanted)
        adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        rate.step()


def _metric(name: str, model: Any, rows: Sequence[Encoded]) -> float:
    said = _said(model, rows)
    wanted = np.array([one.target for one in rows])
    if said.shape[1] == 1:
        return round(spearman(said[:, 0], wanted.astype(np.float64)), 4)
    classes = said.argmax(axis=1)
    return round({"matthews": matthews, "accuracy": accuracy}[name](classes, wanted.astype(np.int64)), 4)


def _said(model: Any, rows: Sequence[Encoded]) -> NDArray[np.float64]:
    """Logits; long texts beside long ones."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    found: list[Any] = [None] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            logits = model(**pad([rows[index] for index in chosen], _PAD, _CPU)).logits
            for index, one in zip(chosen, logits.double().numpy(), strict=True):
                found[index] = one
    return np.stack(found)
