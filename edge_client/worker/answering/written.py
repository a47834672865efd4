# SPDX-License-Identifier: Apache-2.0
"""What a finished language model writes to texts: an exported Hugging Face folder, in float32 as everybody loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from edge_client.worker.data.chat import prompt_ids
from edge_client.worker.generate.generator import Generator
from edge_client.worker.model.built import BuiltModel
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of

__all__ = ["written"]

_OPTIONS = GenerationOptions(max_new_tokens=128)


def written(folder: Path, task: TaskSection, texts: Sequence[str], tokenizer: Any) -> tuple[str, ...]:
    """The likeliest answer to each text, of at most 128 tokens.

    Args:
        folder: The exported model.
        task: The run's. One that learns conversations answers a text as what the user says; any other continues it.
        texts: What is asked.
        tokenizer: The folder's.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = Generator(BuiltModel(model), tokenizer)

    def prompt(text: str) -> Sequence[int]:
        if task_of(task).conversations:
            return prompt_ids([{"role": "user", "content": text}], tokenizer, task.template_text)
        return tuple(tokenizer(text)["input_ids"])

    return tuple("".join(token.text for token in generator.stream(prompt(text), _OPTIONS)) for text in texts)
