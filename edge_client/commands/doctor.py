# SPDX-License-Identifier: Apache-2.0
"""`fedkrso doctor`: see docs/doctor.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

__all__ = ["doctor"]


@click.command()
@click.option(
    "--node",
    "node_file",
    type=click.Path(path_type=Path),
    metavar="NODE.toml",
    help="Also check a node file and what it names.",
)
@click.option(
    "--broker", "url", help="Check this broker instead: mqtts://host:port, or mqtt://host:port without encryption."
)
@click.option("--username", help="Login at the broker.")
@click.option("--password", help="Its password.", envvar="FEDKRSO_PASSWORD")
@click.option("--ca-file", help="Authority that the broker's certificate must come from; the system's by default.")
@click.option("--certificate-file", help="Our certificate; an agent connected with it loses its link for a moment.")
@click.option("--key-file", help="Its key.")
@click.option(
    "--quick", is_flag=True, help="Leave out what takes more than a moment: nothing is measured, no library is loaded."
)
@click.option("--again", is_flag=True, help="Measure the compute route anew, also where it is remembered.")
@click.option("--json", "as_json", is_flag=True, help="For machines: a list of group, check, state, found, remedy.")
def doctor(
    node_file: Path | None,
    url: str | None,
    username: str | None,
    password: str | None,
    quick: bool,
    again: bool,
    as_json: bool,
    **files: Any,
) -> None:
    """Check this machine, each check with what was found and the remedy. Ends with 1 if any is an error.

    Software, device, memory, how it computes (real products, forward and backward), clock and service; with --node also
    the node's data, model, certificates, disk and broker."""
    import os
    import sys
    import time

    from devices.detection import detect
    from edge_client.commands.waiting import Waiting
    from edge_client.doctor.base import Surroundings
    from edge_client.doctor.checks import as_text, examine
    from fedcore.config.sections import BrokerSection

    broker = None
    if url is not None:
        # Who types mqtt:// here has chosen it; the finding says what that means.
        broker = BrokerSection(url=url, insecure=True, username=username, password=password, **files)
    device = detect()
    try:
        around = Surroundings(
            device,
            environment=os.environ,
            node_file=node_file,
            broker=broker,
            quick=quick,
            again=again,
            clock=time.time,
        )
        with Waiting(sys.stderr) as waiting:
            found = list(examine(around, waiting.say))
    finally:
        device.close()
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1) if as_json else as_text(found))
    if any(check.state == "error" for check in found):
        raise click.exceptions.Exit(1)
