# SPDX-License-Identifier: Apache-2.0
"""`fedkrso client serve`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedcore.errors import ConfigError
from fedcore.system.logs import LOG_FORMATS, LogFormat, LogWriter

__all__ = ["client_serve"]


@click.command()
@click.argument("node_file", type=click.Path(path_type=Path), metavar="[NODE.toml]", required=False)
@click.option("--model", "model", metavar="FOLDER", help="Serve a model folder by itself, without a node.")
@click.option("--host", help="Where to listen.  [default: the node file's, or 127.0.0.1]")
@click.option("--port", type=int, help="0 takes a free one.  [default: the node file's, or 8480]")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Tokens that let clients in, one a line; needed where others can reach the address.",
)
@click.option("--name", "names", multiple=True, help="A name that a reverse proxy gives this server.")
@click.option("--memory-budget", help="With --model: for server and worker together.  [default: auto]")
@click.option(
    "--log-format", "form", type=click.Choice(LOG_FORMATS), default="text", show_default=True, help="One line an event."
)
def client_serve(
    node_file: Path | None,
    model: str | None,
    host: str | None,
    port: int | None,
    token_file: Path | None,
    names: tuple[str, ...],
    memory_budget: str | None,
    form: LogFormat,
) -> None:
    """Answer over HTTP, as OpenAI's clients ask, from what this node has learned.

    /v1/chat/completions for models that write, /v1/classify for models that say labels or scores, /v1/models, /health.
    Runs beside `fedkrso client run` with the same NODE.toml, or without it. The newest published state that the node
    has taken is what answers. [serve] in NODE.toml says how training and serving share the memory budget."""
    if (node_file is None) == (model is None):
        raise ConfigError("one of NODE.toml and --model FOLDER is served", place="client serve")
    from edge_client.serving.start import folder_service, node_service

    asked = {"host": host, "port": port, "token_file": None if token_file is None else str(token_file.absolute())}
    changes = {key: value for key, value in asked.items() if value is not None}
    if model is not None:
        service = folder_service(model, memory_budget or "auto", changes)
    else:
        assert node_file is not None
        if memory_budget is not None:
            raise ConfigError(
                "a node's budget is in its file", place="--memory-budget", remedy=f"set memory_budget in {node_file}"
            )
        service = node_service(node_file, changes)
    log = LogWriter(sys.stdout, form, run=service.source.name, node=service.node, prefix="serve: ")
    service.run(names, log.say)
