# SPDX-License-Identifier: Apache-2.0
"""Hundreds of tiny real runs, each disturbed by its own seed: `python -m benchmarks.disturbed --runs 200 --out
disturbed.jsonl`.

Every run must end with the digest of the undisturbed run, with every home's update in every round exactly once. One
line of JSON a run; what is already in the file is not run again, so that an interrupted series goes on. Failed runs
leave their folder and are run again."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from forked_workers import ForkedWorkers
from killer import recipe_of, run_disturbed
from masked import Masked
from tiny import AtMostOnce, Tiny, undisturbed
from workshop import Workshop

_COUNTED = {
    "coordinators killed": "kill coordinator",
    "agents killed": "kill agent",
    "workers killed": "kill worker",
    "brokers killed": "kill broker",
    "messages dropped": "drop",
    "duplicated": "duplicate",
    "reordered": "reorder",
    "delayed": "delay",
    "links cut before a packet": "cut",
    "links cut within a packet": "tear",
}


def table(rows: list[dict[str, Any]]) -> str:
    """What was done to all runs together, and what came of it."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(
            {
                key: value
                for key, value in row.items()
                if isinstance(value, int) and not isinstance(value, bool) and key != "seed"
            }
        )
    good = [row for row in rows if "error" not in row]
    lines = [("runs with the undisturbed digest, no update lost or counted twice", f"{len(good)} of {len(rows)}")]
    lines += [(label, str(total[key])) for label, key in _COUNTED.items()]
    lines += [(f"files damaged: {key[7:]}", str(total[key])) for key in sorted(total) if key.startswith("damage ")]
    seconds = sorted(row["seconds"] for row in good) or [0.0]
    lines.append(("seconds a run, median and longest", f"{seconds[len(seconds) // 2]:.1f}, {seconds[-1]:.1f}"))
    return "\n".join(["| what | count |", "|---|---:|", *(f"| {label} | {value} |" for label, value in lines)])


def series(
    seeds: Sequence[int],
    folder: Path,
    out: Path,
    *,
    at_once: int,
    cold: bool = False,
    masked: bool = False,
    qos: int = 1,
) -> list[dict[str, Any]]:
    """Run what is not in `out` yet, one line each; all rows of the file and these.

    Args:
        seeds: One for each run.
        folder: Where runs live; those that fail stay there.
        out: Rows as JSON lines.
        at_once: Runs side by side.
        cold: Start every worker from nothing, as a device does.
        masked: Disturb signed runs with secure aggregation; the digest is still that of one without.
        qos: MQTT's quality of service; 0 without masks.
    """
    kind = Masked if masked else Tiny if qos else AtMostOnce
    known = {row["seed"]: row for row in map(json.loads, out.read_text().splitlines())} if out.exists() else {}
    forked_workers = None if cold else ForkedWorkers(folder / "forked_workers")
    try:
        workshop = Workshop(folder / "workshop", forked_workers)
        wanted = [seed for seed in seeds if "error" in known.get(seed, {"error": ""})]
        recipes = {seed: replace(recipe_of(seed), homes=3) if masked else recipe_of(seed) for seed in wanted}
        for recipe in sorted(set(recipes.values()), key=lambda recipe: recipe.name):
            undisturbed(folder / f"undisturbed-{recipe.name}", workshop, recipe)

        def one(seed: int) -> dict[str, Any]:
            try:
                return run_disturbed(seed, folder, workshop, recipe=recipes[seed], kind=kind)
            except Exception as error:  # noqa: BLE001 - a run that fails is a finding, not the end of the series
                (folder / f"{seed}.error").write_text(traceback.format_exc())
                return {
                    "seed": seed,
                    "error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                }

        with ThreadPoolExecutor(at_once) as pool, out.open("a") as file:
            for row in pool.map(one, wanted):
                known[row["seed"]] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                click.echo(json.dumps(row))
    finally:
        if forked_workers is not None:
            forked_workers.stop()
    return [known[seed] for seed in sorted(known)]


@click.command()
@click.option("--runs", default=200, show_default=True)
@click.option("--first", default=0, show_default=True, help="First seed.")
@click.option("--at-once", default=2, show_default=True, help="Runs side by side.")
@click.option("--cold", is_flag=True, help="Start every worker from nothing, as a device does: several times slower.")
@click.option("--masked", is_flag=True, help="Of three homes with signatures and secure aggregation; another OUT.")
@click.option("--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="Of MQTT; another OUT.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("disturbed.jsonl"), show_default=True)
def main(runs: int, first: int, at_once: int, cold: bool, masked: bool, qos: int, out: Path) -> None:
    """Run what is not in OUT yet, then print the table."""
    folder = Path(tempfile.mkdtemp(prefix="disturbed-"))
    rows = series(range(first, first + runs), folder, out, at_once=at_once, cold=cold, masked=masked, qos=qos)
    click.echo(table(rows))
    if any("error" in row for row in rows):
        click.echo(f"folders of failed runs: {folder}")
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
