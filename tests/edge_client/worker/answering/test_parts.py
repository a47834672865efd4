# SPDX-License-Identifier: Apache-2.0
"""A classifier in two parts says what it says in one, up to the rounding of what crosses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers as hf

from edge_client.worker.answering.parts import Parts, embedding_of, quantised
from edge_client.worker.architecture.configuration import read_tokenizer
from fedcore.answers.resolved import cosine
from fedcore.errors import DataError, ModelError, WorkerError
from fedcore.weights.checkpoint import Checkpoint, write_safetensors
from fedcore.worker.parts import Begin, Finish, LoadPart
from tests.edge_client.worker.answering.two_parts import BLOCKS, TEXTS, two_parts

PAIRS = tuple((text, None) for text in TEXTS)


def reference(folder: Path, *, rounded: bool) -> np.ndarray:
    """The model in one piece, one text at a time; with what crosses rounded where it would."""
    model: Any = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, found = read_tokenizer(folder), []

    def round_(block: Any, arguments: Any, said: torch.Tensor) -> torch.Tensor:
        scale = said.abs().amax(-1, keepdim=True) / 127
        return (said / scale).round() * scale

    blocks = model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers
    if rounded:
        blocks[BLOCKS - 1].register_forward_hook(round_)
    for text in TEXTS:
        with torch.no_grad():
            found.append(model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].numpy())
    return np.array(found)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_two_parts_are_the_whole(kind: str, tmp_path: Path) -> None:
    small, large = two_parts(kind, tmp_path)
    device, coordinator = Parts(read_tokenizer), Parts(read_tokenizer)
    mine, theirs = (
        device.load(LoadPart(model_folder=str(small))),
        coordinator.load(LoadPart(model_folder=str(large), blocks=BLOCKS)),
    )
    assert (mine.front, mine.labels, mine.width) == (theirs.front, ("off", "on"), 32)
    begun = device.begin(Begin(PAIRS)).texts
    np.testing.assert_allclose([one.scores for one in begun], reference(small, rounded=False), atol=1e-5)
    finished = coordinator.finish(Finish(tuple(one.hidden for one in begun)))
    np.testing.assert_allclose(finished.scores, reference(large, rounded=True), atol=2e-5)
    np.testing.assert_allclose(finished.scores, reference(large, rounded=False), atol=0.05)
    assert np.ptp([one[0] for one in finished.scores]) > 0.2, "answers differ from text to text"
    assert finished.embeddings == tuple(one.embedding for one in begun)
    lengths = [len(read_tokenizer(small)(text)["input_ids"]) for text in TEXTS]
    assert [len(one.hidden.numbers) + len(one.hidden.scales) for one in begun] == [36 * tokens for tokens in lengths]
    # One at a time, or many: the same.
    alone = [coordinator.finish(Finish((one.hidden,))).scores[0] for one in begun]
    np.testing.assert_allclose(alone, finished.scores, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    small, large = two_parts("bert", tmp_path)
    device, coordinator = Parts(read_tokenizer), Parts(read_tokenizer)
    with pytest.raises(WorkerError, match="no such part"):
        device.begin(Begin(PAIRS))
    for blocks in (4, 5):
        with pytest.raises(ModelError, match=f"{blocks} blocks on devices, of a model of 4"):
            coordinator.load(LoadPart(model_folder=str(large), blocks=blocks))
    mine = device.load(LoadPart(model_folder=str(small)))
    coordinator.load(LoadPart(model_folder=str(large), blocks=BLOCKS))
    (hidden,) = [one.hidden for one in device.begin(Begin(PAIRS[:1])).texts]
    for changes in (
        {"tokens": 3},
        {"tokens": 0},
        {"scales": hidden.scales[4:]},
        {"scales": bytes(len(hidden.scales))},
        {"scales": np.full(hidden.tokens, np.nan, "<f4").tobytes()},
    ):
        with pytest.raises(DataError):
            coordinator.finish(Finish((msgspec.structs.replace(hidden, **changes),)))
    with pytest.raises(WorkerError, match="no such part"):
        coordinator.begin(Begin(PAIRS))
    # Other weights before the border are another front, after it they are not.
    for name, same in (("bert.encoder.layer.1.output.dense.bias", False), ("classifier.bias", True)):
        changed = shutil.copytree(small, tmp_path / name)
        checkpoint = Checkpoint(small)
        tensors = {key: checkpoint.read(key) + (key == name) for key in checkpoint.tensors}
        table = [(key, "F32", value.shape) for key, value in tensors.items()]
        write_safetensors(changed / "model.safetensors", table, lambda key, found=tensors: found[key].astype("<f4"))
        assert (Parts(read_tokenizer).load(LoadPart(model_folder=str(changed))).front == mine.front) == same


def test_texts_are_compared_by_more_than_a_few_large_numbers() -> None:
    """As a decoder's: three numbers of its states are the same in every text, and many times the others."""
    draw = np.random.default_rng(0)
    one, other = (draw.normal(size=(9, 64)).astype(np.float32) for _ in range(2))
    sizes = np.array([60, -40, 30], np.float32)
    one[:, :3] = other[:, :3] = sizes
    nearly = one.copy()
    nearly[-1] = np.concatenate([sizes, draw.normal(size=61)])
    a, b, c = (embedding_of(*quantised(states)) for states in (one, other, nearly))

    def plain(left: np.ndarray, right: np.ndarray) -> float:
        left, right = left.mean(0), right.mean(0)
        return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))

    assert plain(one, other) > 0.99
    assert cosine(a, b) < 0.75
    assert cosine(a, c) > cosine(a, b) + 0.2
