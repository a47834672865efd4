# SPDX-License-Identifier: Apache-2.0
"""`fedkrso coordinator offsite`: a smaller model for nodes, of a full one that stays here."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["coordinator_offsite"]


@click.command(
    epilog="\b\nExamples:\n"
    "  fedkrso coordinator offsite models/full models/emulator\n"
    "  fedkrso coordinator export reviews tuned --plug-in models/full"
)
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--first", type=click.IntRange(min=0), default=1, show_default=True, help="Blocks at the start: train.")
@click.option("--last", type=click.IntRange(min=0), default=1, show_default=True, help="Blocks at the end: train.")
@click.option("--middle", type=click.IntRange(min=0), help="Blocks kept between, frozen.  [default: half of them]")
@click.option("--align", metavar="FILE", help="Texts (CSV, TSV, JSONL, Parquet) to bring the middle nearer with.")
@click.option("--text", default="text", show_default=True, help="Their column.")
@click.option("--rows", type=click.IntRange(min=1), default=2000, show_default=True, help="Texts at most.")
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Of 16 texts each.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True)
def coordinator_offsite(
    model: str,
    folder: Path,
    first: int,
    last: int,
    middle: int | None,
    align: str | None,
    text: str,
    rows: int,
    steps: int,
    learning_rate: float,
) -> None:
    """Write an emulator of MODEL to FOLDER: fewer blocks, for nodes that are not to have the full model.

    FOLDER is an ordinary model folder for any run and method; its first and last blocks train, the others do not.
    With --align its middle learns on a file of texts to say what the full middle says. `export --plug-in MODEL` then
    puts what was learned into the full model."""
    from coordinator.offsite.aligning import align_emulator
    from coordinator.offsite.emulator import write_emulator
    from coordinator.reports.lastmodel import require_empty
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.sections import DataSection

    require_empty(folder)
    full = resolve_model_folder(model, place="MODEL")
    found = write_emulator(full, folder, first=first, last=last, middle=middle)
    click.echo(f"{folder}: {found.words}")
    if align is None:
        return
    done = align_emulator(full, folder, DataSection(source=align, text=text), rows, steps, learning_rate)
    click.echo(f"aligned on {done.texts:,} texts: the middle is off by {done.after:.3f}, and was by {done.before:.3f}")
