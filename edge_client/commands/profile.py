# SPDX-License-Identifier: Apache-2.0
"""The command `fedkrso profile`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from edge_client.commands.forecast import Profile, answer, as_html, as_text, column
from edge_client.commands.waiting import Waiting
from edge_client.process.measuring import (
    AnswerMeasurement,
    AnswerRequest,
    Measurement,
    Request,
    measured,
    measured_answer,
    subspace_round,
)
from edge_client.serving.memory import AGENT_BYTES, RESERVE_BYTES, SERVER_BYTES
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import USUAL_TASK, task_of
from fedcore.config.words import converted
from fedcore.device.memoryplan import Footprint
from fedcore.errors import BudgetError, ConfigError, FedkrsoError, ModelError
from fedcore.round.training import USUAL_RANK, AnyTraining
from fedcore.weights.schema import ModelSchema

if TYPE_CHECKING:
    from edge_client.worker.trace.outline import Outline
    from edge_client.worker.trace.shapes import Shapes

__all__ = ["profile"]


class _FoundOut(NamedTuple):
    """What one trace found out and the next need not: names and shapes of weights, what trains, operations."""

    outline: Outline
    schema: ModelSchema
    shapes: Shapes


# Tokens of question and answer together, as far as the model has positions.
_CONTEXTS = (256, 1024, 4096)


@click.command()
@click.argument("model")
@click.option(
    "--budget", help="Memory for agent and worker: 4GiB, 60%, auto. Default: what --device can spare, else auto."
)
@click.option("--device", "device_name", help="Plan for a device of the catalogue, e.g. jetson-orin-nano-8gb.")
@click.option(
    "--task",
    default=USUAL_TASK,
    show_default=True,
    help="text-classification, causal-lm, pair-classification, regression, or that of an installed package.",
)
@click.option("--labels", default=2, show_default=True, help="Number of labels, for classification.")
@click.option("--batch", default=16, show_default=True, help="Examples in an optimiser step.")
@click.option("--length", default=128, show_default=True, help="Tokens of the longest example.")
@click.option("--min-length", default=0, help="Tokens that examples may be cut to if nothing else fits.")
@click.option("--rank", default=USUAL_RANK, show_default=True)
@click.option("--min-rank", default=0, help="Smallest rank that may be trained if nothing else fits; default: --rank.")
@click.option("--pool", default=5, show_default=True, help="Seeds of the pool.")
@click.option(
    "--measure", is_flag=True, help="Run real steps with the plan and compare; without weights, with random ones."
)
@click.option("--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def profile(
    model: str,
    budget: str | None,
    device_name: str | None,
    task: str,
    labels: int,
    batch: int,
    length: int,
    min_length: int,
    rank: int,
    min_rank: int,
    pool: int,
    measure: bool,
    html_file: Path | None,
    as_json: bool,
) -> None:
    """Does MODEL train within a memory budget, and where would the memory go? Of a model that writes also what answers
    take, by the length of their context.

    MODEL is a folder with a config.json, that file itself, PACKAGE:FOLDER, or a name on the Hugging Face hub, of which
    only config.json is fetched. No weights are needed. Ends with exit code 8 where FedKRSO does not fit."""
    from devices.catalogue import device_by_name
    from edge_client.memory.planner import Bounds

    # Everything that may be wrong first: the libraries take seconds to load.
    device = device_by_name(device_name, place="--device") if device_name else None
    room = _budget(budget, device.usable_bytes if device else None)
    for name, value in (("batch", batch), ("length", length), ("rank", rank), ("pool", pool)):
        if value < 1:
            raise ConfigError(f"{value} is not a positive number", place=f"--{name}", remedy="write 1 or more")
    # A head as wide as the label set; other tasks have no labels, and do not look at them.
    words = {"kind": task, "labels": tuple(map(str, range(labels))), "max_length": length, "min_length": min_length}
    section = converted(words, TaskSection, place="--task")
    folder = _folder_of(model)

    training = subspace_round(pool=pool, rank=rank, batch_size=batch, steps=1, intervals=pool)
    with Waiting(sys.stderr) as waiting:
        found_out, own, lora, full = _footprints(folder, section, training, length, min_length, waiting)
    fixed = Bounds(batch_size=batch, rank=rank, min_rank=rank, mapped=False)
    bounds = Bounds(batch_size=batch, rank=rank, min_rank=min_rank or rank, min_length=min_length)
    columns = (
        column(
            "full fine-tuning", full, Bounds(batch_size=batch, rank=0, min_rank=0, mapped=False), room - AGENT_BYTES
        ),
        column("LoRA", lora, fixed, room - AGENT_BYTES),
        column("FedKRSO", own, bounds, room - AGENT_BYTES),
    )
    found = Profile(
        model=folder.name if Path(model).exists() else model,
        task=task,
        budget_bytes=room,
        device=device.name if device else "",
        agent_bytes=AGENT_BYTES,
        batch_size=batch,
        length=length,
        rank=rank,
        columns=columns,
    )
    if task_of(section).outputs() is None:
        found = _with_answers(found, found_out, section, training)
    if measure and columns[-1].fits:
        found = msgspec.structs.replace(found, measured=_measured(folder, section, found, pool))
    if measure and found.longest_context and (folder / "tokenizer.json").exists():
        tokens = max(one.context_tokens for one in found.answers if one.fits)
        found = msgspec.structs.replace(found, measured_answer=_measured_answer(folder, tokens))
    click.echo(msgspec.json.encode(found) if as_json else as_text(found))
    if html_file is not None:
        html_file.write_text(as_html(found), encoding="utf-8")
    if not columns[-1].fits:
        needed = (found.columns[-1].components.total_bytes + AGENT_BYTES) / 0.96
        remedy = f"at least {needed / 2**20:,.0f} MiB, a shorter --length or a smaller --rank"
        raise BudgetError(f"{columns[-1].shortfall_bytes / 2**20:,.0f} MiB short", place="--budget", remedy=remedy)


def _footprints(
    folder: Path, section: TaskSection, training: AnyTraining, length: int, min_length: int, waiting: Waiting
) -> tuple[_FoundOut, Footprint, Footprint, Footprint]:
    """What answers are traced from too, and FedKRSO, LoRA of the same rank, and full fine-tuning, traced."""
    waiting.say("loading the libraries")
    from edge_client.worker.programs.lean import hide_optional_packages

    hide_optional_packages()
    from edge_client.worker.model.loading import describe
    from edge_client.worker.trace.compare import full_footprint, lora_footprint
    from edge_client.worker.trace.footprint import footprint
    from edge_client.worker.trace.outline import Outline
    from edge_client.worker.trace.points import Tracing
    from edge_client.worker.trace.shapes import Shapes

    def tracing(method: str) -> Tracing:
        def progress(done: int, of: int) -> None:
            waiting.say(f"tracing {method}: {done} of at most {of} passes")

        # What one trace finds out about operations serves the next, and no more is traced than the plans need.
        return Tracing(shapes=shapes, progress=progress, when_asked=True, outline=outline)

    shapes, outline = Shapes(), Outline(folder, section)
    schema = describe(outline, section)
    own = footprint(
        folder,
        schema,
        section,
        "int8",
        training,
        longest=length,
        min_length=min_length,
        tracing=tracing("FedKRSO"),
    )
    batch, runtime, rank = training.batch_size, own.runtime_bytes, training.rank
    lora = lora_footprint(
        folder,
        schema,
        section,
        rank=rank,
        batch_size=batch,
        longest=length,
        runtime_bytes=runtime,
        tracing=tracing("LoRA"),
    )
    full = full_footprint(
        folder, section, batch_size=batch, longest=length, runtime_bytes=runtime, tracing=tracing("full fine-tuning")
    )
    return _FoundOut(outline, schema, shapes), own, lora, full


def _with_answers(found: Profile, found_out: _FoundOut, task: TaskSection, training: AnyTraining) -> Profile:
    """With what answers of the tuned model take, by context length, and how long a context may be."""
    from edge_client.worker.architecture.configuration import read_config
    from edge_client.worker.generate.generator import positions_of
    from edge_client.worker.trace.contexts import answer_footprint

    folder = found_out.outline.folder
    most = positions_of(read_config(folder, task))
    contexts = sorted({min(tokens, most) for tokens in _CONTEXTS})
    footprint = answer_footprint(
        folder,
        found_out.schema,
        task,
        sorted({*contexts, most}),
        training=training,
        shapes=found_out.shapes,
        outline=found_out.outline,
    )
    room = found.budget_bytes - AGENT_BYTES - SERVER_BYTES - RESERVE_BYTES
    answers = tuple(answer(tokens, footprint.components(tokens), room) for tokens in contexts)
    return msgspec.structs.replace(
        found, answers=answers, longest_context=footprint.fitting(room, most), server_bytes=SERVER_BYTES
    )


def _budget(text: str | None, device_bytes: int | None) -> int:
    """The budget of the flags: --budget within what the device can spare."""
    from edge_client.memory.limits import budget_bytes
    from fedcore.config.reading import parse_size

    if device_bytes is None:
        return budget_bytes(text or "auto", place="--budget")
    if text is None:
        return device_bytes
    size = parse_size(text, place="--budget")
    if size > device_bytes:
        raise BudgetError(
            f"{text} is more than the {device_bytes / 2**20:,.0f} MiB that the device can spare",
            place="--budget",
            remedy=f"write at most {device_bytes // 2**20} MiB",
        )
    return size


def _folder_of(model: str) -> Path:
    """The folder with the model's config.json."""
    from fedcore.config.models import resolve_model_folder

    path = Path(model).expanduser()
    if path.name == "config.json" and path.is_file():
        return path.parent
    if path.exists() or ":" in model or model.startswith((".", "/", "~")) or model.count("/") != 1:
        folder = resolve_model_folder(model, place="MODEL")
        if not (folder / "config.json").is_file():
            raise ModelError("no config.json in it", place=str(folder), remedy="point at a Hugging Face model folder")
        return folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(model, "config.json")).parent
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"not a folder here, and the hub did not give its config.json: {first}", place=model) from None


def _measured(folder: Path, task: TaskSection, found: Profile, pool: int) -> Measurement:
    """Real steps with the plan, in a process of its own."""
    from edge_client.worker.trace.outline import Outline, write_random_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        if not any(folder.glob("*.safetensors")):
            outline, random_folder = Outline(folder, task), Path(scratch) / "random"
            random_folder.mkdir()
            shutil.copy(folder / "config.json", random_folder)
            write_random_checkpoint(outline, random_folder / "model.safetensors", 0)
            folder = random_folder
        request = Request(
            model_folder=str(folder),
            task=task,
            batch_size=found.batch_size,
            length=found.columns[-1].memory.length or found.length,
            memory=found.columns[-1].memory,
            rank=found.rank,
            pool=pool,
        )
        try:
            return measured(request, Path(scratch) / "replica")
        except FedkrsoError as error:
            raise ModelError(error.message, place="--measure") from None


def _measured_answer(folder: Path, tokens: int) -> AnswerMeasurement | None:
    """An answer of the folder's own model, in a process of its own."""
    if not any(folder.glob("*.safetensors")):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return measured_answer(AnswerRequest(model_folder=str(folder), context_tokens=tokens), Path(scratch))
        except FedkrsoError as error:
            raise ModelError(error.message, place="--measure") from None
