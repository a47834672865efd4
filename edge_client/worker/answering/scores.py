# SPDX-License-Identifier: Apache-2.0
"""Asking a finished model: an exported Hugging Face folder, as everybody loads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from edge_client.worker.architecture.pooled import load_finished
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import encode, worker_task
from edge_client.worker.model.built import BuiltModel
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of

__all__ = ["scores_of_texts"]

_BATCH = 16


def scores_of_texts(
    folder: Path, task: TaskSection, texts: Sequence[tuple[str, str | None]], tokenizer: Any
) -> tuple[tuple[float, ...], ...]:
    """What the model in a folder says of texts, in their order.

    Args:
        folder: The exported model.
        task: The run's, with its labels as a list; not one without a head, whose model only continues a text.
        texts: Each with its second sentence, or None.
        tokenizer: The folder's.

    Returns:
        Of each text the probability of every label; a regression's one score.
    """
    at_work = worker_task(task)
    encoded = encode([Example(text, pair, None) for text, pair in texts], task, tokenizer)
    outputs = task_of(task).outputs()
    pooled = None if outputs is None else load_finished(folder, outputs)
    model = BuiltModel(
        AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        if pooled is None
        else pooled
    )

    def rows() -> Iterator[tuple[float, ...]]:
        for start in range(0, len(encoded), _BATCH):
            batch = encoded[start : start + _BATCH]
            said = at_work.forward(model, batch, model.pad_id, torch.device("cpu"))
            yield from map(tuple, (said if task_of(task).scale else said.softmax(-1)).tolist())

    with torch.inference_mode():
        return tuple(rows())
