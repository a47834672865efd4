# SPDX-License-Identifier: Apache-2.0
"""A classifier as sentence models are used: a backbone of transformers', one vector of its last hidden states, and one
linear layer.

transformers' own classes for classification look at one token, often through layers that no sentence model was trained
with. What a folder's model was trained with says its `modules.json` (`fedcore.weights.sentences`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ModelError
from fedcore.fields.types import Pooled, Pooling
from fedcore.weights.checkpoint import read_entry, read_table, to_float32
from fedcore.weights.sentences import HEAD_FILE, HEAD_NAMES, read_sentence_model

__all__ = ["PooledClassifier", "Said", "load_finished", "pooled_of", "resolved_pooling"]


@dataclass(frozen=True)
class Said:
    """What a classifier says, where transformers' own say it."""

    logits: Tensor


class PooledClassifier(nn.Module):
    """Logits (b, labels) of a text's hidden states.

    Args:
        backbone: Of transformers, without a head.
        pooling: What of its last hidden states the head looks at.
        outputs: The head's.
    """

    base_model_prefix = "backbone"

    def __init__(self, backbone: Any, pooling: Pooled, outputs: int) -> None:
        super().__init__()
        self.backbone, self.config, self.pooling = backbone, backbone.config, pooling
        if hasattr(backbone, "pooler"):
            # It would be computed, and nobody looks at what it says.
            backbone.pooler = None
        features = self.config.get_text_config().hidden_size
        # On the backbone's device, so that nothing is there where it has no numbers.
        device = next(backbone.parameters()).device
        self.classifier = nn.Linear(features, outputs, device=device)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        row_lengths: tuple[int, ...] = (),
        **more: Any,
    ) -> Said:
        """As a classifier of transformers takes it and says it; texts of `row_lengths` lie end to end, where there are
        such (`edge_client.worker.model.varlen`)."""
        if row_lengths:
            more["row_lengths"] = row_lengths
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        if row_lengths:
            texts = (rows[None] for rows in hidden[0].split(row_lengths))
            each = [pooled_of(text, input_ids.new_ones(text.shape[:2]), self.pooling) for text in texts]
            return Said(self.classifier(torch.cat(each)))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return Said(self.classifier(pooled_of(hidden, mask, self.pooling)))

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's."""
        found: nn.Module = self.backbone.get_input_embeddings()
        return found

    def _set_gradient_checkpointing(self, enable: bool, gradient_checkpointing_func: Callable[..., Any]) -> None:
        self.backbone._set_gradient_checkpointing(
            enable=enable, gradient_checkpointing_func=gradient_checkpointing_func
        )


def pooled_of(hidden: Tensor, mask: Tensor, pooling: Pooled) -> Tensor:
    """One vector (b, n) of each text's hidden states (b, t, n), float32.

    Args:
        hidden: Padded on the right.
        mask: (b, t), 1 for a real token, of which each text has one.
        pooling: Which tokens count, and how.

    Example:
        >>> hidden = torch.tensor([[[1.0], [4.0], [9.0]]])
        >>> mask = torch.tensor([[1, 1, 0]])
        >>> [float(pooled_of(hidden, mask, way)) for way in ("first", "mean", "last", "max")]
        [1.0, 2.5, 4.0, 4.0]
    """
    states = hidden.float()
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    real = mask[..., None].to(states.dtype)
    if pooling == "max":
        return states.masked_fill(real == 0, -torch.inf).amax(1)
    return (states * real).sum(1) / real.sum(1)


def resolved_pooling(folder: Path, task: TaskSection) -> tuple[TaskSection, str]:
    """The task with what `auto` means for a folder, and that in words, where there is something to say.

    Args:
        folder: With a `config.json`.
        task: With its labels.

    Raises:
        ModelError: A sentence model that pools in a way that is not understood.
    """
    if task_of(task).outputs() is None or task.pooling == "model":
        return task, ""
    chosen: Pooling
    if task.pooling != "auto":
        chosen, words = task.pooling, ""
    elif (found := read_sentence_model(folder)) is None:
        return msgspec.structs.replace(task, pooling="model"), ""
    else:
        chosen, words = found.pooling, f"the head looks at {_WORDS[found.pooling]}, as this sentence model was trained"
        if found.normalised:
            words += "; their length is kept, which the head learns from"
        if found.outputs:
            words += f"; the folder's head of {found.outputs} is replaced by a new one"
    if chosen == "last" and _pools_last(folder):
        # The same, and an export is one of transformers' own.
        chosen = "model"
    return msgspec.structs.replace(task, pooling=chosen), words


_WORDS = {
    "first": "the first token",
    "mean": "the mean of all tokens",
    "last": "the last token",
    "max": "the largest number of all tokens",
}


def _pools_last(folder: Path) -> bool:
    """Whether transformers' own class for classification looks at the last token alone, by one linear layer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.modeling_layers import GenericForSequenceClassification

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    own = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    return isinstance(own, type) and issubclass(own, GenericForSequenceClassification)


def load_finished(folder: Path, outputs: int) -> PooledClassifier | None:
    """A model that was exported with a head on pooled states; None for a folder of another kind.

    Raises:
        ModelError: Its head is not there, or has another shape.
    """
    from transformers import AutoModel

    found = read_sentence_model(folder)
    if found is None or not found.outputs:
        return None
    if found.outputs != outputs:
        raise ModelError(f"a head of {found.outputs} where {outputs} are asked for", place=str(folder / HEAD_FILE))
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    model = PooledClassifier(backbone, found.pooling, outputs)
    try:
        table = read_table(folder / HEAD_FILE)
        tensors = {ours: table[theirs] for ours, theirs in HEAD_NAMES.items()}
    except (OSError, KeyError) as error:
        raise ModelError(f"its head is not there: {error}", place=str(folder / HEAD_FILE)) from None
    with torch.no_grad():
        for name, entry in tensors.items():
            parameter = model.get_parameter(name)
            if entry.shape != tuple(parameter.shape):
                raise ModelError(f"{name} is {entry.shape}", place=str(folder / HEAD_FILE))
            parameter.copy_(torch.from_numpy(to_float32(read_entry(entry), entry.dtype)))
    return model.eval()
