# SPDX-License-Identifier: Apache-2.0
"""How many calls a model gets right, by plain `transformers`, and by plain `peft` where there is an adapter.

    python -m examples.intent_calls.scoring MODEL [--adapter FOLDER]

MODEL is an ordinary Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.intent_calls.data import Row, new_names, new_sentences
from examples.intent_calls.prompt import END, prompt
from fedcore.numbers.texts import json_equality, same_json

__all__ = ["answers", "held_out_sets", "loaded", "scored"]

_AT_ONCE = 25
_MOST_NEW_TOKENS = 64


def held_out_sets(seed: int, homes: int, rows: int) -> dict[str, list[Row]]:
    """Both held-out sets, by what is new in them."""
    return {"new names": new_names(seed, rows), "new sentences": new_sentences(seed, homes, rows)}


def loaded(model: Path, adapter: Path | None = None) -> Any:
    """A model in float32; with an adapter as `peft` puts it on."""
    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is None:
        return made
    from peft import PeftModel

    return PeftModel.from_pretrained(made, adapter)


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, commands: Sequence[str]) -> list[str]:
    """Greedy answers, in order."""
    model.eval()
    tokenizer.padding_side = "left"
    said: dict[str, str] = {}
    by_length = sorted(commands, key=len)
    for start in range(0, len(by_length), _AT_ONCE):
        texts = by_length[start : start + _AT_ONCE]
        inputs = tokenizer([prompt(text) for text in texts], return_tensors="pt", padding=True)
        made = model.generate(
            **inputs,
            max_new_tokens=_MOST_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
        )
        new = made[:, inputs["input_ids"].shape[1] :]
        said.update(zip(texts, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
    return [said[text] for text in commands]


def scored(model: Any, tokenizer: Any, held_out: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Equality of the calls in each set."""
    found = {}
    for name, rows in held_out.items():
        said = answers(model, tokenizer, [row["prompt"] for row in rows])
        found[name] = float(json_equality(said, [row["completion"] for row in rows]).mean())
    return found


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--adapter", type=click.Path(path_type=Path, exists=True), help="Put on the model by plain peft.")
@click.option("--homes", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the run's data.")
@click.option("--rows", default=300, show_default=True, help="Measured, of each held-out set.")
@click.option("--threads", default=2, show_default=True)
@click.option("--wrong", is_flag=True, help="Show the wrong answers.")
def main(model: Path, adapter: Path | None, homes: int, seed: int, rows: int, threads: int, wrong: bool) -> None:
    """Print the share of right calls in both held-out sets."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = loaded(model, adapter)
    for name, part in held_out_sets(seed, homes, rows).items():
        said, right = answers(asked, tokenizer, [row["prompt"] for row in part]), [row["completion"] for row in part]
        click.echo(f"{name}: {json_equality(said, right).mean():.3f} of {len(part)}")
        for row, answer in zip(part, said, strict=True):
            if wrong and not same_json(answer, row["completion"]):
                click.echo(f"  {row['prompt']}\n    said  {answer}\n    right {row['completion']}")


if __name__ == "__main__":
    main()
