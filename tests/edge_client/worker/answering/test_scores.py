# SPDX-License-Identifier: Apache-2.0
"""What a finished model says: the same as transformers, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from edge_client.worker.answering.finished import finished
from edge_client.worker.answering.scores import scores_of_texts
from fedcore.config.sections import TaskSection
from fedcore.weights.sentences import HEAD_FILE, HEAD_NAMES, write_sentence_model

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


def test_a_head_on_pooled_states_is_asked_as_it_was_exported(minilm_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone, tokenizer = AutoModel.from_pretrained(minilm_folder), AutoTokenizer.from_pretrained(minilm_folder)
    backbone.config.id2label = {0: "a", 1: "b", 2: "c"}
    backbone.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_sentence_model(tmp_path, "mean", 384, 3, max_length=64)
    weight, bias = torch.randn(3, 384), torch.randn(3)
    save_file({HEAD_NAMES["classifier.weight"]: weight, HEAD_NAMES["classifier.bias"]: bias}, tmp_path / HEAD_FILE)
    task = TaskSection(kind="text-classification", labels=("a", "b", "c"), pooling="mean")
    found = scores_of_texts(tmp_path, task, [(text, None) for text in TEXTS], tokenizer)
    with torch.inference_mode():
        states = [backbone.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
        wanted = [(weight @ one.mean(0) + bias).softmax(-1).tolist() for one in states]
    assert [pytest.approx(row, abs=1e-5) for row in wanted] == [list(row) for row in found]
    # The folder alone says that it is a classifier, of what.
    served = finished(tmp_path, tmp_path / "scratch", tokenizer)
    assert served.task.labels == ("a", "b", "c") and type(served.model.module).__name__ == "PooledClassifier"
