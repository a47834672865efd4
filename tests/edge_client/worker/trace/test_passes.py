# SPDX-License-Identifier: Apache-2.0
"""An answer's largest pass through a few blocks is that through all of them, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config

from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import build, describe
from edge_client.worker.trace.blocks import repetition
from edge_client.worker.trace.footprint import Shape
from edge_client.worker.trace.outline import Outline
from edge_client.worker.trace.passes import pass_bytes
from edge_client.worker.trace.shapes import Shapes, fake_model
from fedcore.config.sections import TaskSection

WORDS = TaskSection(kind="causal-lm", max_length=24)
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 4, "sliding_window": 8}


def fake(folder: Path, shapes: Shapes, model_type: str, **more: Any) -> BuiltModel:
    tiny_config(model_type, **more).save_pretrained(folder)
    schema = describe(Outline(folder, WORDS), WORDS)
    model = build(Shape(Outline(folder, WORDS), schema, "int8"), WORDS, 0, torch.device("cpu"), torch.float32)
    fake_model(model, shapes)
    return model


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("llama", {"num_hidden_layers": 7}),
        ("gemma2", {"num_hidden_layers": 8, **WINDOWS}),
        ("gpt2", {"n_layer": 6}),
    ],
    ids=["llama", "gemma2 with windows", "gpt2"],
)
def test_a_few_blocks_say_what_a_pass_through_all_of_them_keeps(
    model_type: str, more: dict[str, Any], tmp_path: Path
) -> None:
    shapes = Shapes()
    model = fake(tmp_path, shapes, model_type, **more)
    found, ran = repetition(model), []
    assert found is not None
    found.blocks[-1].register_forward_hook(lambda *_: ran.append(1))
    for context, last, rows, padded in ((20, 6, 1, False), (12, 12, 1, False), (20, 6, 2, True)):
        few = pass_bytes(model, shapes, context, last, rows=rows, padded=padded)
        assert not ran, "the last block is not run"
        whole = pass_bytes(model, shapes, context, last, rows=rows, padded=padded, whole=True)
        assert few == whole > 0 and ran
        ran.clear()
    assert len(found.parent.get_submodule(found.name)) == len(found.blocks)  # type: ignore[arg-type]


def test_blocks_that_differ_are_all_run(tmp_path: Path) -> None:
    kinds = ["full_attention"] * 2 + ["sliding_attention"] + ["full_attention"] * 2 + ["sliding_attention"]
    more = {"layer_types": kinds, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    shapes = Shapes()
    model = fake(tmp_path, shapes, "qwen2", num_hidden_layers=6, **more)
    assert repetition(model) is None
    assert pass_bytes(model, shapes, 20, 6) == pass_bytes(model, shapes, 20, 6, whole=True)
