# SPDX-License-Identifier: Apache-2.0
"""Informed rows against an ordinary model: what goes into its linear layers, text by text, is what they whiten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import edge_client.worker.methods.fedkrso.principal as principal
from edge_client.worker.data.tasks import Encoded
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.layer import FloatWeight, SubspaceLinear
from edge_client.worker.model.loading import build, describe
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.model.base import Base
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import LayerSpec

TASK = TaskSection(kind="causal-lm", max_length=24)
CPU = torch.device("cpu")
TEXTS = [Encoded(tuple((7 * i + (2 * i + 5) * j) % 400 + 3 for j in range(6 + i % 9)), None, None) for i in range(60)]


def built(folder: Path, own: Path) -> tuple[BuiltModel, tuple[LayerSpec, ...]]:
    torch.set_num_threads(1)
    checkpoint = Checkpoint(folder)
    schema = describe(checkpoint, TASK)
    return build(Base(checkpoint, schema, "float32", own), TASK, 0, CPU, torch.float32), schema.layers


@pytest.mark.parametrize("group_bytes", [2**30, 8 * 32**2])
def test_rows_whiten_what_an_ordinary_model_reads(
    group_bytes: int, make_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all layers in one pass, or of each in one of its own."""
    monkeypatch.setattr(principal, "_MOMENT_BYTES", group_bytes)
    folder = make_llama(dtype="float32")
    model, layers = built(folder, tmp_path / "own")
    rows = dict(principal.informed_layers(model, layers, TEXTS, TASK, CPU, subspaces=2, rank=3, pool=4))
    assert list(rows) == [layer.name for layer in layers] and model.module.training
    ordinary = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    for name, kept in seen.items():
        ordinary.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, kept=kept: kept.append(inputs[0][0].numpy())
        )
    with torch.inference_mode():
        for text in TEXTS:
            ordinary(torch.tensor([text.ids]))
    for name, part in rows.items():
        x = np.concatenate(seen[name]).astype(np.float64)
        mean = x.mean(axis=0) / np.linalg.norm(x.mean(axis=0))
        x -= np.outer(x @ mean, mean)
        p = np.ldexp(part.rows.astype(np.float64), part.exponent.astype(int)[:, None])
        second = p @ (x.T @ x) @ p.T
        # All rows vary alike, and none goes with another: up to what rounding to 7 bits does.
        assert np.abs(second / second[0, 0] - np.eye(6)).max() < 0.1, name
        assert 0.9 < (p**2).sum(axis=1).mean() / x.shape[1] < 1.1
        values = np.linalg.eigvalsh(x.T @ x)[::-1]
        # No six rows hold more of the input than these.
        q, _ = np.linalg.qr(p.T)
        assert np.trace(q.T @ (x.T @ x) @ q) > 0.995 * values[:6].sum(), name
    # What reads one tensor has one matrix.
    query, key, out = (rows[f"model.layers.0.self_attn.{name}_proj"].rows for name in "qko")
    assert np.array_equal(query, key) and not np.array_equal(query, out)


def test_a_layer_that_nothing_goes_into_is_refused_in_one_line(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    model, layers = built(make_llama(dtype="float32"), tmp_path / "own")
    idle = {"idle": SubspaceLinear("idle", FloatWeight(torch.zeros(4, 8)))}
    model = dataclasses.replace(model, layers={**model.layers, **idle})
    with pytest.raises(ModelError, match=r"^idle: nothing was measured of this layer's input"):
        list(
            principal.informed_layers(
                model, [*layers, LayerSpec("idle", 4, 8)], TEXTS, TASK, CPU, subspaces=2, rank=3, pool=4
            )
        )
