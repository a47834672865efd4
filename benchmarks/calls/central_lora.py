# SPDX-License-Identifier: Apache-2.0
"""What one machine with all rows would reach: LoRA by plain `peft` in float32 on the rows of the four homes of
`examples.intent_calls`, and the model as it came, before any training.

    python -m benchmarks.calls.central_lora MODEL --rate 5e-4 --rate 1e-3 --rate 2e-3

MODEL is an ordinary Hugging Face folder (`fedkrso model import` makes one of a GGUF file). Without a rate nothing is
trained: the model is measured as it came. `python -m examples.intent_calls.scoring` measures an exported adapter."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer

from examples.intent_calls.data import Row, home
from examples.intent_calls.prompt import END, prompt
from examples.intent_calls.scoring import held_out_sets, loaded, scored

_LEARNED_ONLY = -100


@dataclass(frozen=True)
class _Rows:
    """Token ids, and how many of them are the prompt's."""

    ids: list[int]
    prompt_tokens: int


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--rate", "rates", type=float, multiple=True, help="A learning rate; one run each.")
@click.option("--steps", default=520, show_default=True, help="Of 8 rows: as many rows as the homes train on together.")
@click.option("--batch-size", default=8, show_default=True)
@click.option("--rank", default=16, show_default=True)
@click.option("--homes", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--rows", default=300, show_default=True, help="Measured, of each held-out set.")
@click.option("--threads", default=2, show_default=True)
def main(
    model: Path,
    rates: tuple[float, ...],
    steps: int,
    batch_size: int,
    rank: int,
    homes: int,
    seed: int,
    rows: int,
    threads: int,
) -> None:
    """Train a LoRA for each rate and print how many calls are right; without a rate, of the model as it came."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model)
    held_out = held_out_sets(seed, homes, rows)
    if not rates:
        _say("no training", loaded(model), tokenizer, held_out)
    examples = [_encoded(row, tokenizer) for index in range(homes) for row in home(index, homes, seed)]
    for rate in rates:
        torch.manual_seed(seed)
        chance = random.Random(seed)  # noqa: S311 - the order of rows, no secret
        layers = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        learner = get_peft_model(loaded(model), layers)
        started = time.monotonic()
        _train(learner, examples, rate, steps, batch_size, chance)
        _say(f"rate {rate:g}, {steps} steps, {time.monotonic() - started:.0f} s", learner, tokenizer, held_out)


def _encoded(row: Row, tokenizer: Any) -> _Rows:
    read = tokenizer(prompt(row["prompt"]), add_special_tokens=False)["input_ids"]
    learned = tokenizer(row["completion"] + END, add_special_tokens=False)["input_ids"]
    return _Rows(read + learned, len(read))


def _train(
    model: Any, examples: Sequence[_Rows], rate: float, steps: int, batch_size: int, chance: random.Random
) -> None:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    course = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - 0.9 * step / steps)
    order: list[_Rows] = []
    model.train()
    for step in range(steps):
        if len(order) < batch_size:
            order = chance.sample(examples, len(examples))
        batch, order = order[:batch_size], order[batch_size:]
        loss = _loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        course.step()
        if step % 50 == 49:
            click.echo(f"  step {step + 1}, loss {float(loss.detach()):.3f}")


def _loss(model: Any, batch: Sequence[_Rows]) -> Tensor:
    """Mean over the answers' tokens. Rows are padded on the right, where no token before can see it."""
    longest = max(len(row.ids) for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full_like(ids, _LEARNED_ONLY)
    for number, row in enumerate(batch):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        targets[number, row.prompt_tokens - 1 : len(row.ids) - 1] = ids[number, row.prompt_tokens : len(row.ids)]
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_LEARNED_ONLY)


def _say(name: str, model: Any, tokenizer: Any, held_out: Mapping[str, Sequence[Row]]) -> None:
    found = scored(model, tokenizer, held_out)
    click.echo(f"{name}: equality {', '.join(f'{value:.3f} on {part}' for part, value in found.items())}")


if __name__ == "__main__":
    main()
