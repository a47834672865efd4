# SPDX-License-Identifier: Apache-2.0
"""The next token of plain text, cut into pieces: cross-entropy over the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, Question, Scores, Shown, WorkerTask, states_and_labels
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.head import OutputHead
from edge_client.worker.model.loss import chunked_cross_entropy, chunked_scores

__all__ = ["CausalLMAtWork"]


class CausalLMAtWork(WorkerTask):
    """What is called accuracy is exp(-loss), the mean probability of the right token; beside it the share of tokens
    that the model thought the likeliest, and perplexity."""

    sample_target = None

    def encode(self, example: Example, tokenizer: Any) -> Iterator[Encoded]:
        """Pieces of `max_length` tokens; one of a single token foretells nothing and is left out."""
        ids, most = tokenizer(example.text)["input_ids"], self.section.max_length
        pieces = (tuple(ids[i : i + most]) for i in range(0, len(ids), most))
        return (Encoded(piece, None, None) for piece in pieces if len(piece) > 1)

    def shown(self, example: Example, tokenizer: Any) -> Shown:
        """All of it learned."""
        return Shown(((example.text, True),), len(tokenizer(example.text, verbose=False)["input_ids"]))

    def forward(self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device) -> Tensor:
        """Hidden states (learned, n)."""
        return states_and_labels(model, batch, pad_id, torch_device)[0]

    def summed_loss(
        self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
    ) -> Tensor:
        """Summed over tokens; logits never exist whole."""
        hidden, labels = states_and_labels(model, batch, pad_id, torch_device)
        return chunked_cross_entropy(hidden, _output_weight(model), labels, count=1)

    def scores(
        self, model: BuiltModel, batch: Sequence[Encoded], pad_id: int, torch_device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Of each example the sum over its tokens (b,), and how many of them the model thought the likeliest (b, 1)."""
        states, labels = states_and_labels(model, batch, pad_id, torch_device)
        weight, counts = _output_weight(model), [encoded.weight for encoded in batch]
        rows = zip(torch.split(states, counts), torch.split(labels, counts), strict=True)
        losses, right = zip(*(chunked_scores(some, weight, wanted) for some, wanted in rows), strict=True)
        return torch.stack(losses), torch.stack(right)[:, None].float()

    def predictions(self, scores: Scores, encoded: Sequence[Encoded]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Losses of examples, and the tokens that each is the sum of."""
        return scores.losses, scores.weights

    def measures(self, scores: Scores, encoded: Sequence[Encoded], loss: float) -> tuple[float, dict[str, float]]:
        """Of tokens."""
        right = float(scores.outputs.sum(dtype=np.float64) / scores.weights.sum())
        return math.exp(-loss), {"token_accuracy": right, "perplexity": math.exp(min(loss, 700.0))}

    def means(
        self, scores: Scores, encoded: Sequence[Encoded]
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Tokens."""
        return {"token_accuracy": (scores.outputs[:, 0].astype(np.float64), scores.weights)}

    def question(self, encoded: Encoded) -> Question:
        """The last that is learned of an example, after all that comes before it. A text that is learned whole goes on
        after its first half."""
        start, stop = encoded.spans[-1]
        if start == 1:
            half = max(1, stop // 2)
            return Question(encoded.ids[:half], encoded.ids[half:stop], whole=False)
        return Question(encoded.ids[:start], encoded.ids[start:stop])


def _output_weight(model: BuiltModel) -> OutputHead:
    assert model.output_weight is not None, "the model was built for another task"
    return model.output_weight
