# SPDX-License-Identifier: Apache-2.0
"""`fedkrso bench aggregate`."""

from __future__ import annotations

import json

import click

__all__ = ["bench_aggregate"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench_aggregate(as_json: bool) -> None:
    """Exact aggregation: elements per second on one core, and memory as participants grow from 2 to 50."""
    from coordinator.commands.bench_aggregate import rows

    found = list(rows())
    if as_json:
        click.echo(json.dumps({"rows": found}, indent=1))
        return
    click.echo(f"{'participants':>12} {'bits':>5} {'M elements/s':>13} {'float32 mean M/s':>17} {'memory MB':>10}")
    for row in found:
        click.echo(
            f"{row['participants']:12} {row['bits']:5} {row['elements_per_second'] / 1e6:13.0f} "
            f"{row['float_elements_per_second'] / 1e6:17.0f} {row['sum_bytes'] / 1e6:10.1f}"
        )
