# SPDX-License-Identifier: Apache-2.0
"""`fedkrso bench memory`."""

from __future__ import annotations

import json

import click

__all__ = ["bench_memory"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench_memory(as_json: bool) -> None:
    """Training memory and step time against PEFT LoRA on bitsandbytes int8 and full fine-tuning, each row in its own
    process."""
    from edge_client.commands.bench_memory import rows

    found = list(rows())
    if as_json:
        click.echo(json.dumps({"rows": found}, indent=1))
        return
    click.echo(
        f"{'method':14} {'checkpointing':14} {'allocator':10} {'static MiB':>10} {'above MiB':>10} {'step s':>8}"
    )
    for row in found:
        above = (row["peak_bytes"] - row["static_bytes"]) / 2**20
        click.echo(
            f"{row['method']:14} {row['checkpointing']!s:14} {row['allocator']:10} "
            f"{row['static_bytes'] / 2**20:10.0f} {above:10.0f} {row['step_seconds']:8.2f}"
        )
