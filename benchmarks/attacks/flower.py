# SPDX-License-Identifier: Apache-2.0
"""Flower's rules of our names, on the same update files: where it is installed (`pip install flwr`), for tests and for

    python -m benchmarks.attacks.flower --data DATA --out FOLDER --nodes 10

which goes over the first round of the whole model that `benchmarks.attacks --rounds 1` has left in FOLDER, with two
liars. Flower takes arrays of floats; ours are whole numbers in units of 2**-32, which float64 holds exactly here."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.first import FirstRound, node_name
from benchmarks.attacks.lies import OF_UPDATES, write_numbers
from benchmarks.attacks.texts import read_texts
from benchmarks.attacks.whole import WholeModel
from fedcore.model.combine import Combined
from fedcore.model.update import WeightedUpdate
from fedcore.numbers.choosing import Krum, MultiKrum
from fedcore.numbers.rules import Median, Rule, TrimmedMean

__all__ = ["compared"]

_LIARS: Final = 2


def compared(round_: FirstRound, paths: Sequence[Path], liars: int) -> Iterator[tuple[str, float, int]]:
    """Of each rule its name, the largest difference to Flower's numbers in units of 2**-32, and how many there are.

    Args:
        round_: Whose updates they are.
        paths: Update files, by node.
        liars: Of them, as rules are told.
    """
    flower: Any = importlib.import_module("flwr.server.strategy.aggregate")
    count, share = len(paths), Fraction(liars, len(paths))
    updates = [WeightedUpdate(path, round_.header(path, node_name(at)), 1) for at, path in enumerate(paths)]
    given = [(list(round_.parts(round_.numbers(path, node_name(at))).values()), 1) for at, path in enumerate(paths)]
    keep = count - liars - 2
    rules: dict[str, tuple[Rule, Any]] = {
        "median": (Median(), lambda: flower.aggregate_median(given)),
        "trimmed-mean": (TrimmedMean(share), lambda: flower.aggregate_trimmed_avg(given, float(share))),
        "krum": (Krum(liars=liars), lambda: flower.aggregate_krum(given, liars, 0)),
        "multi-krum": (MultiKrum(liars=liars), lambda: flower.aggregate_krum(given, liars, keep)),
    }
    for name, (rule, theirs) in rules.items():
        ours = np.concatenate([mean.reshape(-1) for _, mean in Combined(updates, round_.plan, rule).means()])
        found = np.concatenate([part.reshape(-1) for part in theirs()]) * 2.0**32
        yield name, float(np.abs(found - ours).max()), ours.size


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="With a folder SST-2.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Of `benchmarks.attacks --rounds 1`.")
@click.option("--nodes", default=10, show_default=True)
@click.option("--held", default=300, show_default=True, help="As there.")
def main(data: Path, out: Path, nodes: int, held: int) -> None:
    """Print a line for each attack and rule."""
    whole = WholeModel(read_texts(data, 2000, held, 48), out, "iid", nodes)
    honest, names = whole.honest_numbers(), [node_name(at) for at in range(nodes)]
    for attack in ("", *OF_UPDATES):
        numbers: NDArray[np.float64] = honest.copy()
        if attack:
            numbers[:_LIARS] = OF_UPDATES[attack](honest[:_LIARS], honest[_LIARS:])
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{name}.bin" for name in names]
            for at, path in enumerate(paths):
                header = whole.round.header(out / "updates" / "honest" / f"{names[at]}.bin", names[at])
                write_numbers(path, header, whole.round.plan, numbers[at])
            for name, apart, count in compared(whole.round, paths, _LIARS):
                print(f"{attack or 'none'}: {name}: {count:,} numbers, at most {apart:.3g} x 2**-32 apart", flush=True)


if __name__ == "__main__":
    main()
