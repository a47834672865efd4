# SPDX-License-Identifier: Apache-2.0
"""A look at data and model before a run, for `fedkrso doctor` and for `--check` of node and job: `python -m
edge_client.worker.programs.look < LOOK`.

It reads as training does, and says what training would say."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_client.worker.data.reading import check_rows, load_texts, resolved_task, together
from edge_client.worker.data.sources import function_by_name
from fedcore.config.adapters import AnyAdapter
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError, FedkrsoError
from fedcore.worker.failures import failure_of
from fedcore.worker.looking import Look, Seen

__all__ = ["seen"]


def seen(look: Look) -> Iterator[str]:
    """A line for each thing that can serve.

    Raises:
        FedkrsoError: The first that cannot.
    """
    task = None if look.task is None else resolved_task(look.task)
    # First what needs no library that takes seconds to load: most faults are there.
    counted = {name: check_rows(section, task) for name, section in look.rows.items()}
    functions = [name for name in look.metrics if ":" in name]
    for name in functions:
        function_by_name(name, "evaluation.metrics")
    if functions:
        yield f"metrics: {', '.join(functions)}"
    for name, section in look.rows.items():
        yield f"{name}: {section.source}: {_rows(section, task, look.model_folder, *counted[name])}"
    if look.trained_tensors is not None and task is not None:
        yield _trained(Path(look.model_folder), task, look.trained_tensors, look.adapter)
    if look.compared and task is not None:
        yield _compared(Path(look.model_folder), task)
    if look.calibration is not None and task is not None:
        found = load_texts(look.calibration.data, look.calibration.rows, task)
        yield f"calibration: {len(found):,} texts of {look.calibration.data.source}"


def _rows(section: DataSection, task: TaskSection | None, model_folder: str, rows: int, labelled: int) -> str:
    """How many can be used; with a task and a tokenizer, as training sees them."""
    if task is None:
        none = f", none of which has a label (column {section.label!r})" if section.label and not labelled else ""
        return f"{rows:,} rows can be read{none}"
    if not model_folder:
        return f"{rows:,} rows can be used"
    from edge_client.worker.programs.lean import hide_optional_packages

    # Before what imports them.
    hide_optional_packages()
    from edge_client.worker.architecture.configuration import read_tokenizer
    from edge_client.worker.data.checking import check_data

    found = check_data(section, task, read_tokenizer(Path(model_folder)))
    if found.wrong:
        raise together(found.wrong)
    left_out = found.fates["left out"]
    if left_out == found.rows:
        raise DataError("every row is left out", place=section.source, remedy="raise task.max_length")
    return f"{rows:,} rows can be used" + (f", {left_out:,} are left out" if left_out else "")


def _trained(folder: Path, task: TaskSection, patterns: tuple[str, ...], adapter: AnyAdapter | None) -> str:
    from edge_client.worker.architecture.pooled import resolved_pooling
    from edge_client.worker.model.describing import describe
    from fedcore.weights.checkpoint import Checkpoint

    task, _ = resolved_pooling(folder, task)
    schema = describe(Checkpoint(folder), task, patterns)
    if adapter is None:
        return f"model: {len(schema.layers)} layers and {len(schema.tensors)} tensors train"
    from edge_client.worker.adapters.attaching import with_adapter

    trained = [spec for spec in with_adapter(schema, folder, task, adapter).adapter if spec.trained]
    numbers = sum(math.prod(spec.shape) for spec in trained)
    return f"model: {numbers:,} numbers of {adapter.name} and {len(schema.tensors)} tensors train"


def _compared(folder: Path, task: TaskSection) -> str:
    from edge_client.worker.programs.lean import hide_optional_packages

    hide_optional_packages()
    from edge_client.worker.train.agreement import described
    from fedcore.weights.checkpoint import Checkpoint

    return "; ".join(described(Checkpoint(folder), task).notes)


def _main(look: Look) -> Seen:
    lines: list[str] = []
    try:
        lines += seen(look)
    except FedkrsoError as error:
        return Seen(tuple(lines), failure_of(error))
    return Seen(tuple(lines))


if __name__ == "__main__":
    # What a user's function printed stands before it.
    answer = msgspec.json.encode(_main(msgspec.json.decode(sys.stdin.read(), type=Look))).decode()
    sys.stdout.write(f"\n{answer}\n")
