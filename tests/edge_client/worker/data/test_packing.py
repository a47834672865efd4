# SPDX-License-Identifier: Apache-2.0
"""Packed rows train as their examples do, and a model that mixes them is refused by numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edge_client.worker.data.batches import Encoded
from edge_client.worker.data.packing import check_apart, packed
from edge_client.worker.data.tasks import summed_loss, worker_task
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.fused import fuse
from edge_client.worker.model.loading import build, describe
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
TASK = TaskSection(kind="instruction", max_length=24, pack=True)
ALONE = [
    Encoded(tuple((5 * i + j) % 200 + 3 for j in range(length)), None, None, learned=((length // 2, length - 1),))
    for i, length in enumerate((9, 20, 6, 24, 8, 15))
]


@pytest.fixture
def llama(make_llama: Callable[..., Path], tmp_path: Path) -> BuiltModel:
    folder = make_llama(vocabulary=256, dtype="float32")
    schema = describe(Checkpoint(folder), TASK)
    model = build(Base(Checkpoint(folder), schema, "float32", tmp_path / "base"), TASK, 0, CPU, torch.float32)
    fuse(model.module)
    return model


def test_rows_are_full_and_nothing_is_lost() -> None:
    rows = packed(ALONE, 24)
    assert [row.segments for row in rows] == [(), (), (15, 9), (8, 6)]
    assert sum(row.examples for row in rows) == len(ALONE) and max(len(row.ids) for row in rows) == 24
    assert sum(row.weight for row in rows) == sum(one.weight for one in ALONE)
    learned = sorted(row.ids[start:stop] for row in rows for start, stop in row.spans)
    assert learned == sorted(one.ids[start:stop] for one in ALONE for start, stop in one.spans)


def test_loss_and_gradient_are_those_of_the_examples_alone(llama: BuiltModel) -> None:
    embedding = llama.module.get_input_embeddings().weight
    found = []
    for batch in (ALONE, packed(ALONE, 24)):
        embedding.requires_grad_(True)
        embedding.grad = None
        loss = summed_loss(llama, batch, TASK, 0, CPU) / sum(row.weight for row in batch)
        loss.backward()
        found.append((float(loss.detach()), embedding.grad.clone()))
    (alone, gradient), (together, other) = found
    assert together == pytest.approx(alone, rel=1e-5)
    assert float((gradient - other).abs().max()) < 1e-5 * float(gradient.abs().max())
    check_apart(llama, CPU)


@pytest.mark.parametrize(
    ("kind", "words", "match"),
    [
        ("gpt2", {"n_embd": 32, "n_head": 2, "n_layer": 2}, None),
        ("mistral", {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4}, None),
        ("mamba", {"hidden_size": 32, "state_size": 4}, "MambaForCausalLM does not keep"),
        ("bloom", {"hidden_size": 32, "n_head": 2, "n_layer": 2}, "BloomForCausalLM does not keep"),
        (
            "lfm2",
            {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "layer_types": ["conv", "full_attention"],
            },
            "Lfm2ForCausalLM does not keep",
        ),
    ],
)
def test_who_keeps_examples_apart_is_measured(kind: str, words: dict[str, Any], match: str | None) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "num_hidden_layers": 2, "intermediate_size": 64}
    config = AutoConfig.for_model(kind, **(sizes if kind not in ("gpt2", "bloom") else {"vocab_size": 128}), **words)
    config.use_cache = False
    model = BuiltModel(AutoModelForCausalLM.from_config(config).eval())
    if match is None:
        check_apart(model, CPU)
    else:
        with pytest.raises(ModelError, match=match):
            check_apart(model, CPU)


def test_what_is_measured_without_data_is_packed_too() -> None:
    sample = worker_task(TASK).sample((1,) * 9, None)
    assert (sample.segments, sample.weight, sample.examples) == ((4, 5), 7, 2)
