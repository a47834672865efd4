# SPDX-License-Identifier: Apache-2.0
"""`fedkrso broker run`: a broker for a first try on one machine."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["broker_run"]


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("broker"),
    show_default=True,
    help="Configuration and log.",
)
@click.option(
    "--user", "users", multiple=True, default=("fedkrso",), show_default=True, help="A user; repeat for more."
)
@click.option("--port", default=1883, show_default=True)
@click.option("--kind", type=click.Choice(["mosquitto", "nats"]), help="By default mosquitto where there is one.")
def broker_run(folder: Path, users: tuple[str, ...], port: int, kind: str | None) -> None:
    """Run a broker on the loopback interface, with generated passwords: for a first run on one machine."""
    from coordinator.provisioning.broker import LocalBroker

    with LocalBroker(folder, users, kind=kind, port=port) as broker:  # type: ignore[arg-type]
        click.echo(f"{broker.kind} at {broker.url}")
        for user in users:
            click.echo(f"\n# for {user}\n{broker.sections(user)}", nl=False)
        broker.wait()
