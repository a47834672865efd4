# SPDX-License-Identifier: Apache-2.0
"""A finished model: a Hugging Face folder that is served by itself, with its weights in 8 bits where it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from edge_client.worker.architecture.pooled import load_finished
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import build, describe
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.sentences import read_sentence_model

__all__ = ["Finished", "finished"]

_MOST_LENGTH = 512


@dataclass(frozen=True)
class Finished:
    """A model that nobody trains.

    Attributes:
        model: Built.
        task: What it does.
        base: Of a model that writes.
    """

    model: BuiltModel
    task: TaskSection
    base: Base | None = None


def finished(folder: Path, scratch: Path, tokenizer: Any) -> Finished:
    """The model in a folder: one that classifies or scores if its `config.json` says so, else one that writes.

    Args:
        folder: With weights and configuration.
        scratch: For its weights in 8 bits, which are made once.
        tokenizer: The folder's.

    Raises:
        ModelError: transformers cannot read it.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"transformers cannot read it: {error}", place=str(folder / "config.json")) from None
    sentences = read_sentence_model(folder)
    pooled = sentences is not None and sentences.outputs > 0
    if pooled or any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return _classifier(folder, config, tokenizer)
    task, checkpoint = TaskSection(kind="causal-lm"), Checkpoint(folder)
    base = Base(checkpoint, describe(checkpoint, task), "int8", scratch)
    base.store()
    return Finished(build(base, task, 0, torch.device("cpu"), torch.float32), task, base)


def _classifier(folder: Path, config: Any, tokenizer: Any) -> Finished:
    length = min(int(tokenizer.model_max_length), _MOST_LENGTH)
    if config.problem_type == "regression":
        task = TaskSection(kind="regression", max_length=length)
    else:
        labels = tuple(config.id2label[index] for index in sorted(config.id2label))
        task = TaskSection(kind="text-classification", labels=labels, max_length=length)
    pooled = load_finished(folder, config.num_labels)
    if pooled is not None:
        return Finished(BuiltModel(pooled), task)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    return Finished(BuiltModel(model), task)
