# SPDX-License-Identifier: Apache-2.0
"""`fedkrso generate` and `fedkrso chat`: a language model's answers at the terminal, token by token, within the node's
memory budget."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from fedcore.config.generation import GenerationOptions
from fedcore.config.words import converted
from fedcore.errors import ConfigError, DataError

__all__ = ["chat", "generate"]


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both commands have."""
    for option in reversed(
        (
            click.option("--model", metavar="FOLDER", help="A model folder by itself, in 8 bits."),
            click.option(
                "--node",
                "node_file",
                metavar="NODE.toml",
                type=click.Path(path_type=Path),
                help="What this node has learned: its base, and the newest published state that it has taken.",
            ),
            click.option("--memory-budget", help="With --model: for this process and its worker.  [default: auto]"),
            click.option("--system", default="", help="What the model is told before the conversation."),
            click.option("--max-new-tokens", type=int, help="Of an answer.  [default: as many as fit, up to 512]"),
            click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token."),
            click.option(
                "--top-p", default=1.0, show_default=True, help="Draw among those that have this probability."
            ),
            click.option("--top-k", default=0, show_default=True, help="Draw among so many; 0: all."),
            click.option("--seed", default=0, show_default=True, help="Of the draws."),
            click.option("--stop", multiple=True, help="A text that ends the answer."),
            click.option(
                "--schema",
                type=click.Path(path_type=Path, exists=True, dir_okay=False),
                help="A JSON schema that each answer meets, with the properties in its order.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", required=False)
@_shared
def generate(prompt: str | None, schema: Path | None, system: str, **asked: Any) -> None:
    """Answer PROMPT, or what comes on the standard input."""
    from fedcore.worker.serving import ChatMessage

    asking, options, most = _asking(**asked)
    form = _form(schema)
    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise ConfigError("an empty prompt", place="PROMPT", remedy="give one, or pipe one in")
    begin = (ChatMessage("system", system),) if system else ()
    with asking:
        _print(asking.ask((*begin, ChatMessage("user", text)), options, max_tokens=most, json_schema=form))


@click.command()
@_shared
def chat(schema: Path | None, system: str, **asked: Any) -> None:
    """Talk with the model. Ctrl-C stops an answer, /reset begins anew, /exit or the end of input ends."""
    from fedcore.worker.serving import ChatMessage

    asking, options, most = _asking(**asked)
    form = _form(schema)
    begin = [ChatMessage("system", system)] if system else []
    turns = list(begin)
    with asking:
        click.echo(f"a context of {asking.context_tokens:,} tokens; /reset begins anew, /exit ends", err=True)
        while (line := _line()) is not None:
            if line == "/reset":
                turns = list(begin)
                continue
            turns.append(ChatMessage("user", line))
            try:
                answer = _print(asking.ask(turns, options, max_tokens=most, json_schema=form))
            except DataError as error:
                # Too long, or a schema that cannot be used: the conversation stays as it was before.
                turns.pop()
                click.echo(f"{error.one_line()} (/reset begins anew)", err=True)
                continue
            turns.append(ChatMessage("assistant", answer))


def _asking(
    model: str | None, node_file: Path | None, memory_budget: str | None, max_new_tokens: int | None, **sampled: Any
) -> tuple[Any, GenerationOptions, int | None]:
    """Who is asked, and how."""
    if (node_file is None) == (model is None):
        raise ConfigError("one of --model FOLDER and --node NODE.toml answers", place="--model")
    if node_file is not None and memory_budget is not None:
        raise ConfigError(
            "a node's budget is in its file", place="--memory-budget", remedy=f"set memory_budget in {node_file}"
        )
    options = converted({**sampled, "max_new_tokens": max_new_tokens or 1}, GenerationOptions, place="--")
    from edge_client.serving.asking import Asking
    from edge_client.serving.start import folder_service, node_service

    if model is not None:
        return Asking(folder_service(model, memory_budget or "auto", {})), options, max_new_tokens
    assert node_file is not None
    return Asking(node_service(node_file, {})), options, max_new_tokens


def _form(schema: Path | None) -> str:
    """A schema's text as it stands, so that its order of properties is kept; empty for none."""
    if schema is None:
        return ""
    try:
        text = schema.read_text(encoding="utf-8")
        if not isinstance(msgspec.json.decode(text), dict):
            raise ConfigError("a schema is a JSON object", place=f"--schema: {schema}")
    except (OSError, UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"cannot be read as JSON: {error}", place=f"--schema: {schema}") from None
    return text


def _print(answer: Iterator[str]) -> str:
    """Write an answer as it comes; Ctrl-C ends it. Returns what came."""
    parts: list[str] = []
    try:
        for part in answer:
            parts.append(part)
            click.echo(part, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        answer.close()  # type: ignore[attr-defined]
    click.echo()
    return "".join(parts)


def _line() -> str | None:
    """What the person says; None at the end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        if line == "/exit":
            return None
        if line:
            return line
