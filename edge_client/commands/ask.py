# SPDX-License-Identifier: Apache-2.0
"""`fedkrso client ask`: texts answered on the device, and by the coordinator's larger model where the device is
unsure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

__all__ = ["client_ask"]

_WAIT_SECONDS = 3.0


@click.command(
    epilog='\b\nExamples:\n  fedkrso client ask kitchen.toml "The tap drips."\n'
    "  fedkrso client ask kitchen.toml --json < texts.txt"
)
@click.argument("node_file", type=click.Path(path_type=Path), metavar="NODE.toml")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Instead of the node file's or the published one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def client_ask(node_file: Path, texts: tuple[str, ...], threshold: float | None, as_json: bool) -> None:
    """Answer each TEXT, or each line of the standard input, and say who answered: the small model of `[ask]` here, an
    answer that a peer got, or the large model behind `fedkrso coordinator oracle`.

    Where that one is gone or late, the small model's answer counts, and the line says so."""
    import msgspec

    from edge_client.answers.asker import Asker
    from edge_client.node import Node
    from fedcore.config.reading import load_config

    node = load_config(node_file, Node)
    if threshold is not None:
        node = msgspec.structs.replace(node, ask=msgspec.structs.replace(node.ask, threshold=threshold))
    with Asker(node) as asker:
        # The published threshold is retained: it comes with the link, if there is one.
        asker.wait(_WAIT_SECONDS, rounds=1)
        for text in texts or _lines():
            (given,) = asker.ask([(text, None)])
            said = given.said
            if as_json:
                line = {"text": text, "label": given.label, "probability": max(said.scores), "by": said.by}
                line |= {"why": said.why, "uncertainty": said.u, "seconds": given.seconds}
                line |= {"sent_bytes": given.sent_bytes, "received_bytes": given.received_bytes}
                click.echo(json.dumps(line))
            else:
                by = f"by the {said.by}" if not said.why else f"by the device, unsure: {said.why}"
                click.echo(f"{text}  ->  {given.label} ({max(said.scores):.0%}), {by}")


def _lines() -> Iterator[str]:
    return (line.strip() for line in sys.stdin if line.strip())
