# SPDX-License-Identifier: Apache-2.0
"""`fedkrso model describe`."""

from __future__ import annotations

import click
import msgspec

from fedcore.errors import ConfigError

__all__ = ["model_describe"]


@click.command()
@click.argument("model")
@click.option("--task", default="text-classification", show_default=True)
@click.option("--labels", default="", help="Comma-separated label set.")
@click.option("--max-length", default=128, show_default=True)
def model_describe(model: str, task: str, labels: str, max_length: int) -> None:
    """Print, as JSON, which layers and tensors of MODEL are trained. For `model.schema_file` of a coordinator without
    torch."""
    from edge_client.worker.train.agreement import described
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.sections import TaskSection
    from fedcore.weights.checkpoint import Checkpoint
    from fedcore.worker.messages import Described

    try:
        section = msgspec.convert(
            {"kind": task, "labels": tuple(filter(None, labels.split(","))), "max_length": max_length}, TaskSection
        )
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), place="--task") from None
    except ConfigError as error:
        raise ConfigError(error.message, place="--task", remedy=error.remedy) from None
    schema, notes = described(Checkpoint(resolve_model_folder(model, place="MODEL")), section)
    click.echo(msgspec.json.encode(Described(schema, section, notes)))
