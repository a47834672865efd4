# SPDX-License-Identifier: Apache-2.0
"""What a finished model says: the same as transformers, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from edge_client.worker.train.answer import scores_of_texts
from fedcore.config.sections import TaskSection

TEXTS = ["the tap drips", "my room is cold and nobody has looked at the heater since monday", "they sing"]


def exported(minilm_folder: Path, folder: Path, outputs: int) -> Path:
    """MiniLM with a head, as a run's export is: weights, configuration and tokenizer."""
    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_pretrained(minilm_folder, num_labels=outputs)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(folder)
    return folder


def test_probabilities_are_those_of_transformers(minilm_folder: Path, tmp_path: Path) -> None:
    model = exported(minilm_folder, tmp_path, 3)
    task = TaskSection(kind="text-classification", labels=("a", "b", "c"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = scores_of_texts(model, task, [(text, None) for text in TEXTS], tokenizer)
    alone = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        wanted = [alone(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).tolist() for text in TEXTS]
    assert [pytest.approx(row, abs=1e-5) for row in wanted] == [list(row) for row in found]


def test_a_second_sentence_counts_and_a_regression_gives_its_score(minilm_folder: Path, tmp_path: Path) -> None:
    model = exported(minilm_folder, tmp_path, 1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = [("a", "b"), ("a", "a long second sentence")]
    (one,), (other,) = scores_of_texts(model, TaskSection(kind="regression"), pairs, tokenizer)
    alone = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        assert one == pytest.approx(float(alone(**tokenizer("a", "b", return_tensors="pt")).logits), abs=1e-5) != other
