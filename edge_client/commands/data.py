# SPDX-License-Identifier: Apache-2.0
"""`fedkrso data check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from fedcore.config.sections import DataSection, TaskSection
from fedcore.config.words import converted
from fedcore.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edge_client.worker.data.checking import Checked

__all__ = ["data_check"]

_MOST_LINES: Final = 20
_MOST_CHARACTERS: Final = 2000


class _Job(msgspec.Struct, frozen=True):
    """What of a job file counts here."""

    task: TaskSection


@click.command()
@click.argument("node_file", type=click.Path(path_type=Path), metavar="NODE.toml")
@click.option("--job", type=click.Path(path_type=Path), metavar="JOB.toml", help="The job, for its [task].")
@click.option("--task", "kind", metavar="KIND", help="Instead of a job: what is to be learned.")
@click.option("--labels", default="", help="With --task: comma-separated label set.")
@click.option("--max-length", type=int, help="With --task: tokens of an example.")
@click.option("--template", type=click.Path(path_type=Path), help="With --task: a file with a chat template.")
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
def data_check(
    node_file: Path,
    job: Path | None,
    kind: str | None,
    labels: str,
    max_length: int | None,
    template: Path | None,
    as_json: bool,
) -> None:
    """Read the data of NODE.toml as training will, and show it: three examples with what is learned of them, lengths,
    what is cut, labels, and every row that cannot be used. No weights are loaded, and nothing is sent anywhere."""
    from edge_client.worker.programs.lean import hide_optional_packages

    # Before what imports them.
    hide_optional_packages()
    from edge_client.worker.architecture.configuration import read_tokenizer
    from edge_client.worker.data.checking import as_numbers, check_data
    from edge_client.worker.data.reading import resolved_task
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.templates import with_template

    node = _node_of(node_file)
    if (job is None) == (kind is None):
        raise ConfigError("what is to be learned is not said, or twice", place="--job", remedy="give --job or --task")
    task = _task_of_job(job) if job is not None else _task_of_flags(str(kind), labels, max_length, template)
    task = resolved_task(with_template(task))
    folder = resolve_model_folder(node.model_folder, place="model_folder")
    found = check_data(node.data, task, read_tokenizer(folder))
    if as_json:
        click.echo(json.dumps(as_numbers(found)))
    else:
        for line in _lines(found, node.data, task):
            click.echo(line)
    if found.wrong:
        raise DataError(
            f"{len(found.wrong)} of {found.rows} rows cannot be used",
            place=node.data.source,
            remedy="repair them, or leave them out",
        )


def _node_of(path: Path) -> Any:
    from edge_client.node import Node
    from fedcore.config.reading import load_config

    return load_config(path, Node)


def _task_of_job(path: Path) -> TaskSection:
    from fedcore.config.reading import load_config

    return load_config(path, _Job).task


def _task_of_flags(kind: str, labels: str, max_length: int | None, template: Path | None) -> TaskSection:
    words: dict[str, Any] = {"kind": kind, "labels": tuple(filter(None, labels.split(",")))}
    if max_length is not None:
        words["max_length"] = max_length
    if template is not None:
        words["template"] = str(template.absolute())
    return converted(words, TaskSection, place="--task")


def _lines(found: Checked, section: DataSection, task: TaskSection) -> Iterator[str]:
    """What was found, for a person; readable without colours."""
    yield f"{section.source}: {found.rows:,} rows, {task.kind}"
    yield from _about(found, task)
    for place, words in _first(found.odd):
        yield click.style("odd    ", fg="yellow") + f"{_clean(place)}: {words}"
    for error in _first(found.wrong):
        yield click.style("wrong  ", fg="red") + error.one_line()
    for what, count in (("odd", len(found.odd)), ("wrong", len(found.wrong))):
        if count > _MOST_LINES:
            yield f"... and {count - _MOST_LINES:,} more {what} rows"
    for place, shown in found.examples:
        learned = any(learned for _, learned in shown.pieces)
        yield ""
        yield click.style(f"{_clean(place)}, {shown.tokens:,} tokens{', learned: »...«' if learned else ''}", bold=True)
        yield "".join(click.style(f"»{_clean(text)}«", fg="green") if on else _clean(text) for text, on in shown.pieces)


def _about(found: Checked, task: TaskSection) -> Iterator[str]:
    """Counts."""
    from edge_client.worker.data.checking import SHARES, percentile

    if found.tokens:
        at = {share: percentile(found.tokens, share) for share in SHARES}
        yield (
            f"tokens a row: half have at most {at[0.5]:,}, 90% {at[0.9]:,}, 99% {at[0.99]:,}, the longest {at[1.0]:,}; "
            f"task.max_length is {task.max_length:,}"
        )
        fates = {**found.fates, **({"refused": len(found.wrong)} if found.wrong else {})}
        said = ", ".join(f"{count:,} {fate}" for fate, count in fates.items())
        yield f"rows: {said}; {found.kept_tokens:,} of {sum(found.tokens):,} tokens are kept"
    if found.learned_tokens:
        yield f"learned: {found.learned_tokens:,} tokens"
    if task.labels:
        yield "labels: " + ", ".join(f"{label} {found.labels[label]:,}" for label in task.labels)
    if found.scores:
        mean = sum(found.scores) / len(found.scores)
        yield f"scores: {min(found.scores):g} to {max(found.scores):g}, mean {mean:.4g}"


def _first(some: Any) -> Any:
    return some[:_MOST_LINES]


def _clean(text: str) -> str:
    """Foreign words that cannot steer a terminal."""
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in shown)
