# SPDX-License-Identifier: Apache-2.0
"""`fedkrso bench aggregate`."""

from __future__ import annotations

import json

import click

__all__ = ["bench_aggregate"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench_aggregate(as_json: bool) -> None:
    """Exact aggregation: elements per second of a processor, from update files into the next state and of the sum
    alone, and memory as participants grow from 2 to 50; and rules that withstand liars beside the mean of the same
    files."""
    from coordinator.commands.bench_aggregate import rows, rule_rows

    found, by_rule = list(rows()), list(rule_rows())
    if as_json:
        click.echo(json.dumps({"rows": found, "rules": by_rule}, indent=1))
        return
    titles = "from files M/s", "sum alone M/s", "float32 sum M/s", "memory MB"
    click.echo(f"{'participants':>12} {'bits':>5} {''.join(f'{title:>17}' for title in titles)}")
    for row in found:
        rates = row["from_files_per_second"], row["elements_per_second"], row["float_elements_per_second"]
        shown = "".join(f"{rate / 1e6:17.0f}" for rate in rates)
        click.echo(f"{row['participants']:12} {row['bits']:5} {shown}{row['sum_bytes'] / 1e6:17.1f}")
    click.echo(f"\n{'participants':>12} {'rule':>17} {'M elements/s':>13} {'of the mean':>12} {'peak MB':>8}")
    for row in by_rule:
        mean = next(one for one in by_rule if (one["participants"], one["rule"]) == (row["participants"], "mean"))
        ratio = row["elements_per_second"] / mean["elements_per_second"]
        click.echo(
            f"{row['participants']:12} {row['rule']:>17} {row['elements_per_second'] / 1e6:13.1f} {ratio:12.2f} "
            f"{row['peak_bytes'] / 1e6:8.1f}"
        )
