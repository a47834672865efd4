# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of BERT's shape with a few thousand numbers, and its schema, made without torch: for runs whose nodes
have no worker."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save_file

from benchmarks.fleet_contents import schema_of
from fedcore.config.sections import TaskSection
from fedcore.weights.checkpoint import Checkpoint
from fedcore.worker.messages import Described

__all__ = ["LABELS", "make_light_model"]

LABELS = ("left", "right")
_WIDTH, _LAYERS = 8, 1


def make_light_model(folder: Path) -> tuple[Path, Path]:
    """Write it; the model's folder and its schema file."""
    model = folder / "model"
    model.mkdir(parents=True)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": 8,
        "hidden_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * _WIDTH,
        "max_position_embeddings": 128,
    }
    (model / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    shapes = {"embeddings.word_embeddings.weight": (8, _WIDTH), "embeddings.LayerNorm.weight": (_WIDTH,)}
    for layer in range(_LAYERS):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (_WIDTH, _WIDTH)
        shapes[f"encoder.layer.{layer}.intermediate.dense.weight"] = (2 * _WIDTH, _WIDTH)
        shapes[f"encoder.layer.{layer}.output.dense.weight"] = (_WIDTH, 2 * _WIDTH)
    save_file(
        {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        model / "model.safetensors",
    )
    described = Described(
        schema_of(Checkpoint(model), len(LABELS)), TaskSection(kind="text-classification", labels=LABELS)
    )
    (folder / "schema.json").write_bytes(msgspec.json.encode(described))
    return model, folder / "schema.json"
