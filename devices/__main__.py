# SPDX-License-Identifier: Apache-2.0
"""`python -m devices`: what this machine is and what its sensors say; with `--record`, the files behind it for a bug
report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click
import msgspec

from devices.base import Device
from devices.detection import detect
from devices.programs import run_nothing, run_program
from devices.record import recorded
from fedcore.device.readings import Readings

_BETWEEN_SECONDS = 1.0


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Facts and readings as JSON.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("/"),
    help="Read another machine's files.",
)
@click.option(
    "--record",
    "record_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all files that are read into this one.",
)
def main(as_json: bool, root: Path, record_file: Path | None) -> None:
    """Print facts and one reading."""
    if record_file is not None:
        run = run_program if root == Path("/") else run_nothing
        record_file.write_text(recorded(root, run), encoding="utf-8")
        click.echo(f"wrote {record_file}")
        return
    device = detect(root)
    try:
        device.read()
        time.sleep(_BETWEEN_SECONDS)  # loads and counters need a reading before
        _print(device, device.read(), as_json)
    finally:
        device.close()


def _print(device: Device, readings: Readings, as_json: bool) -> None:
    facts = dataclasses.asdict(device.facts)
    if as_json:
        both = {"facts": facts, "readings": msgspec.structs.asdict(readings)}
        click.echo(msgspec.json.format(msgspec.json.encode(both), indent=2).decode())
        return
    for table in (facts, msgspec.structs.asdict(readings)):
        for name, value in table.items():
            click.echo(f"{name.replace('_', ' '):28} {_shown(name, value)}")
        click.echo()


def _shown(name: str, value: object) -> str:
    if value is None or value == "" or value == {}:
        return "-"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**20:,.0f} MiB"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(str(key), item)}" for key, item in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
