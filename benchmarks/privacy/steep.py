# SPDX-License-Identifier: Apache-2.0
"""How steep a private head's logits should be: log-loss of a head from sums with noise (`fed3r`) by what its scores are
multiplied by. Which label is the likeliest does not depend on it.

    python -m benchmarks.privacy.steep --data DATA --out FOLDER

One node that hides its rows, as the first lines of `benchmarks.privacy.heads`."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.privacy.heads import Sent, frozen_features, head_of, head_round
from fedcore.config.privacy import ExamplePrivacy, PrivacySection

_SETS: Final = {"clinc150": (6000, 1.6), "sst2": (4000, 1.2)}
"""Rows, and the clip that `benchmarks.privacy.heads` found."""
_EPSILONS: Final = (16.0, 8.0, 3.0, 1.0)
_FACTORS: Final = (2.0, 4.0, 8.0, 16.0, 24.0, 40.0, 60.0)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With folders SST-2 and clinc150.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For features.")
def main(data: Path, out: Path) -> None:
    """Print a line for each data set and epsilon."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    print(f"| data | epsilon | accuracy | as it is | {' | '.join(f'{factor:g}' for factor in _FACTORS)} |")
    print("|---" * (4 + len(_FACTORS)) + "|")
    for name, (rows, clip) in _SETS.items():
        frozen = frozen_features(name, rows, data, out)
        for epsilon in _EPSILONS:
            said = ExamplePrivacy(clip=clip, delta=1e-5, target_epsilon=epsilon, least_examples=rows)
            with tempfile.TemporaryDirectory() as scratch:
                model, plan = head_round(frozen, 1, PrivacySection(example=said), Sent(scratch), Path(scratch))
                weight, bias = head_of(model, plan)
            own = 2 * math.sqrt(2 * len(bias))
            logits, labels = frozen.held[0] @ weight.T + bias, frozen.held[1]
            found = [_loss(logits * (factor / own), labels) for factor in (own, *_FACTORS)]
            accuracy = float((logits.argmax(axis=1) == labels).mean())
            losses = " | ".join(f"{loss:.3f}" for loss in found)
            print(f"| {name} | {epsilon:g} | {accuracy:.3f} | {losses} |", flush=True)


def _loss(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    above = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(above).sum(axis=1)) - above[np.arange(len(labels)), labels]).mean())


if __name__ == "__main__":
    main()
