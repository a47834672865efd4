# SPDX-License-Identifier: Apache-2.0
"""Grade-school questions with a real model: the loss is the one that everybody computes, and it falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_client.process.measuring import Request
from edge_client.worker.data.reading import load_examples
from edge_client.worker.data.tasks import encode, summed_loss
from edge_client.worker.programs.measure import local_plan
from edge_client.worker.train.replica import Replica
from edge_client.worker.train.trainer import Hooks, Trainer
from fedcore.config.sections import DataSection, TaskSection
from fedcore.device.memoryplan import MemoryPlan

CPU = torch.device("cpu")
TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == "user" %}Question: {{ m.content }}{{ "\\nAnswer:" }}
{%- else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""
TASK = TaskSection(kind="instruction", max_length=384, template_text=TEMPLATE, too_long="drop")
ROWS = 16


@pytest.fixture(scope="module")
def stories(shared_folder: Path) -> Path:
    return shared_folder / "models" / "stories260K"


@pytest.fixture(scope="module")
def encoded(shared_folder: Path, stories: Path) -> Any:
    source = str(shared_folder / "data" / "gsm8k" / "train.jsonl")
    examples = load_examples(DataSection(source=source, prompt="question", completion="answer"), TASK)[:64]
    return encode(examples, TASK, AutoTokenizer.from_pretrained(stories))[:ROWS]


def masked_loss(stories: Path, shared_folder: Path) -> float:
    """Of the same rows by plain transformers: labels of -100 but in the answer, the mean over the tokens of a batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(stories), AutoModelForCausalLM.from_pretrained(stories)
    rows: list[tuple[list[int], int]] = []
    for line in (shared_folder / "data" / "gsm8k" / "train.jsonl").read_bytes().splitlines():
        row = msgspec.json.decode(line)
        asked = tokenizer(f"<s>Question: {row['question']}\nAnswer:", add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"<s>Question: {row['question']}\nAnswer: {row['answer']}</s>", add_special_tokens=False)
        ids = whole["input_ids"]
        assert ids[: len(asked)] == asked
        if len(ids) <= TASK.max_length:
            rows.append((ids, len(asked)))
        if len(rows) == ROWS:
            break
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([[-100] * n + row[n:] + [-100] * (longest - len(row)) for row, n in rows])
    with torch.inference_mode():
        return float(model(input_ids=ids, attention_mask=mask, labels=labels).loss)


def test_the_first_loss_is_the_masked_loss_and_rounds_lower_it(
    encoded: Any, stories: Path, shared_folder: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    memory = MemoryPlan(micro_batch_size=4)
    request = Request(
        model_folder="", task=TASK, batch_size=ROWS, length=384, memory=memory, rank=8, pool=2, base_kind="float32"
    )
    plan = local_plan(stories, TASK, request)
    training = msgspec.structs.replace(plan.training, intervals=2, interval_steps=3, learning_rate=1e-2)
    plan = msgspec.structs.replace(plan, training=training)
    replica = Replica(plan, stories, tmp_path / "own", CPU, torch.float32)
    losses: list[float] = []
    hooks = Hooks(lambda done, steps, loss, step: losses.append(loss))
    trainer = Trainer(replica, encoded, tmp_path / "intervals", "r", "n", replica.model.pad_id, CPU, hooks)
    trainer.train(plan, (memory,), tmp_path / "update.bin")
    assert losses[0] == pytest.approx(masked_loss(stories, shared_folder), rel=1e-5)
    assert losses[-1] < losses[0] - 0.1
    with torch.inference_mode():
        again = summed_loss(replica.model, encoded, TASK, replica.model.pad_id, CPU) / sum(e.weight for e in encoded)
    # What this node alone learned is in its update.
    assert float(again) == pytest.approx(losses[0], rel=1e-5)
