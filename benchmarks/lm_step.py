# SPDX-License-Identifier: Apache-2.0
"""A language model's training step on short rows, one thread, beside plain transformers with PEFT's LoRA; all in one
process and in turn, so that ratios hold on a noisy machine.

python -m benchmarks.lm_step FOLDER [--rank 16] [--pool 4] [--times 3]

Rows are like a spoken command and its answer: 8 to 24 tokens read, 10 to 36 learned, 39 on average. LoRA: rank 16 on
all linear layers, float32, padded rows, labels of what is read left out. Seconds are the processor's.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from edge_client.process.measuring import subspace_round
from edge_client.worker.data.tasks import Encoded, pad, summed_loss
from edge_client.worker.methods.fedkrso.half import FedKRSO
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.model.fused import fuse
from edge_client.worker.model.loading import build, describe
from edge_client.worker.model.varlen import leave_padding_out
from fedcore.config.sections import TaskSection
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.numbers.accumulator import RowScaled
from fedcore.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
TASK = TaskSection(kind="causal-lm", max_length=64)
SIZES = (2, 4, 8)


def _rows(count: int) -> list[Encoded]:
    chance = random.Random(0)  # noqa: S311 - lengths, not a secret
    found = []
    for _ in range(count):
        read, learned = chance.randint(8, 24), chance.randint(10, 36)
        ids = tuple(chance.randrange(5, 40_000) for _ in range(read + learned))
        found.append(Encoded(ids, None, None, learned=((read, read + learned),)))
    return found


def _lora(folder: Path) -> Callable[[Sequence[Encoded]], None]:
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(plain, options)
    model.train()
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Sequence[Encoded]) -> None:
        adam.zero_grad(set_to_none=True)
        inputs = pad(batch, 0, CPU)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        for row, encoded in enumerate(batch):
            labels[row, : encoded.spans[0][0]] = -100
        model(**inputs, labels=labels).loss.backward()
        adam.step()

    return step


def _fedkrso(folder: Path, scratch: Path, rank: int, pool: int) -> tuple[BuiltModel, Callable[..., None]]:
    """A built model in the middle of a run, and its step."""
    checkpoint = Checkpoint(folder)
    schema = describe(checkpoint, TASK)
    model = build(Base(checkpoint, schema, "int8", scratch), TASK, 0, CPU, torch.float32)
    fuse(model.module)
    training = subspace_round(pool=pool, rank=rank, batch_size=max(SIZES), steps=1, intervals=pool)
    half, state = FedKRSO(model, training), PublishedState.zero(training, schema)
    numbers = np.random.default_rng(0)
    entries = {
        name: RowScaled(numbers.integers(-1000, 1000, part.q.shape, np.int16), np.full_like(part.exponent, -24))
        for name, part in state.entries.items()
    }
    half.install(dataclasses.replace(state, entries=entries))
    factors = []
    for layer in model.layers.values():
        layer.select(0)
        assert layer.factor is not None
        factors.append(layer.factor)
    adam = torch.optim.Adam(factors, lr=1e-4)

    def step(batch: Sequence[Encoded]) -> None:
        adam.zero_grad(set_to_none=True)
        weight = sum(encoded.weight for encoded in batch)
        (summed_loss(model, batch, TASK, 0, CPU) / weight).backward()  # type: ignore[no-untyped-call]
        adam.step()

    return model, step


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--rank", default=16, show_default=True)
@click.option("--pool", default=4, show_default=True)
@click.option("--times", default=3, show_default=True)
def main(folder: Path, rank: int, pool: int, times: int) -> None:
    """Print medians of a step's seconds, and what they are of LoRA's."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, lora = _rows(max(SIZES)), _lora(folder)
    with tempfile.TemporaryDirectory() as scratch:
        model, own = _fedkrso(folder, Path(scratch), rank, pool)
        click.echo(f"padding can be left out: {leave_padding_out(model, CPU)}")
        ways: dict[str, tuple[bool, bool, bool]] = {
            "every token learned, padding": (True, False, False),
            "logits of learned tokens only": (False, False, False),
            "... without padding": (False, True, False),
            "... weights dequantised": (False, True, True),
        }
        seconds: dict[tuple[str, int], list[float]] = {}

        def timed(name: str, step: Callable[[Sequence[Encoded]], None], batch: Sequence[Encoded]) -> None:
            started = time.process_time()
            step(batch)
            seconds.setdefault((name, len(batch)), []).append(time.process_time() - started)

        for _ in range(times + 1):
            for size in SIZES:
                timed("LoRA", lora, rows[:size])
            for name, (whole, end_to_end, dequantised) in ways.items():
                model.padding.end_to_end = end_to_end
                for layer in model.layers.values():
                    layer.dequantised.switch(dequantised)
                if dequantised:
                    # Made once an interval, not once a step.
                    own(rows[:1])
                for size in SIZES:
                    every = [dataclasses.replace(row, learned=None) if whole else row for row in rows[:size]]
                    timed(name, own, every)
    click.echo(f"{'seconds a step, rows:':32}" + "".join(f"{size:>14}" for size in SIZES) + "   2 of 8 rows")
    for name in ("LoRA", *ways):
        # The first warms up.
        medians = {size: statistics.median(seconds[name, size][1:]) for size in SIZES}
        ratios = {size: medians[size] / statistics.median(seconds["LoRA", size][1:]) for size in SIZES}
        cells = "".join(f"{medians[size]:7.2f} ({ratios[size]:4.2f})" for size in SIZES)
        click.echo(f"{name:32}{cells}   {medians[2] / medians[8]:.2f}")


if __name__ == "__main__":
    main()
