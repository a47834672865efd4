# SPDX-License-Identifier: Apache-2.0
"""`fedkrso provision` and `fedkrso revoke`: see docs/deploy.md."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

__all__ = ["provision", "revoke"]


@click.command()
@click.argument("run")
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option(
    "--out", "folder", type=click.Path(path_type=Path), required=True, help="Folder; what it holds already is kept."
)
@click.option(
    "--site",
    default="",
    metavar="NAME",
    help="A site with a broker of its own, bridged to the central one: the NODEs connect there.",
)
@click.option(
    "--fleet",
    "at_once",
    type=click.IntRange(1, 64),
    metavar="N",
    help="RUN is a fleet, whose server leads at most N runs at once: docs/server.md.",
)
@click.option("--broker-host", "hosts", multiple=True, help="Name or address that devices connect to; repeat for more.")
@click.option("--port", type=int, help="Port of the broker; 8883 by default.")
@click.option("--websockets", type=int, help="A port for MQTT over WebSockets beside it, such as 443; 0: none again.")
@click.option(
    "--broker-folder", help="Where broker/ will lie on the broker's machine; /etc/mosquitto/fedkrso by default."
)
@click.option(
    "--broker-data", help="Where mosquitto keeps sessions and retained messages; /var/lib/mosquitto by default."
)
@click.option(
    "--central-host",
    "central",
    default="",
    metavar="HOST[:PORT]",
    help="How the site's broker reaches the central one.",
)
@click.option(
    "--days",
    default=730,
    show_default=True,
    help="How long new certificates are good for; the authority for ten years.",
)
@click.option(
    "--renew",
    multiple=True,
    metavar="NAME",
    help="Make this node's or site's, `coordinator`'s or `broker`'s certificate anew, on the same key.",
)
def provision(
    run: str,
    nodes: tuple[str, ...],
    folder: Path,
    site: str,
    at_once: int | None,
    hosts: tuple[str, ...],
    port: int | None,
    websockets: int | None,
    broker_folder: str | None,
    broker_data: str | None,
    central: str,
    days: int,
    renew: tuple[str, ...],
) -> None:
    """Make certificates, signing keys, access rules and mosquitto's configuration for RUN and its NODEs, ready to copy.

    Called again with the same folder, it adds nodes, hosts of the broker, sites or another run of the same machines,
    and keeps every key. With --site, the options of the broker are about that site's; `--site broker` takes NODEs back
    to the central one."""
    from coordinator.provisioning import provision as work

    folders = {"folder": broker_folder, "persistence": broker_data}
    options = {
        "port": port,
        "websockets": websockets,
        **{key: path and path.rstrip("/") for key, path in folders.items()},
    }
    chosen = {key: value for key, value in options.items() if value is not None}
    now = dt.datetime.now(dt.timezone.utc)
    done = work.provision(
        folder, run, nodes, hosts=hosts, options=chosen, site=site, central=central, now=now, days=days, renew=renew
    )
    if at_once is not None:
        from coordinator.provisioning.fleets import make_fleet

        done.added += make_fleet(folder, run, at_once, now=now, days=days).added
    for what, names in (("made", done.added), ("made anew", done.renewed), ("kept", done.kept)):
        if names:
            click.echo(f"{what}: {', '.join(names)}")
    yard = work.Yard(folder)
    restart = "then restart mosquitto (reload it, if it is ours already)"
    if done.site:
        click.echo(
            f"{done.site}: copy {yard.site(done.site)}/ to {done.broker_folder}/ on its broker's machine, {restart}"
        )
        click.echo(f"broker:      copy {yard.broker / 'access.acl'} there, then reload mosquitto")
    else:
        click.echo(f"broker:      copy {yard.broker}/ to {done.broker_folder}/, {restart}")
    click.echo("             mosquitto gives root's rights up; copied so, its group can read them:")
    click.echo(f"             sudo install -d -o root -g mosquitto -m 750 {done.broker_folder}")
    click.echo(f"             sudo install -o root -g mosquitto -m 640 {done.site or 'broker'}/* {done.broker_folder}/")
    click.echo(f"coordinator: copy {yard.client('coordinator')}/ beside the job file, connection.toml into it")
    clients = (
        name
        for name in (*done.added, *done.renewed)
        if name not in ("broker", "coordinator") and (yard.client(name) / "signing.key").exists()
    )
    for node in clients:
        click.echo(f"{node}: copy {yard.client(node)}/ beside its node file, connection.toml into it")
    click.echo(f"keep {yard.authority}/ offline")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
def revoke(folder: Path, nodes: tuple[str, ...]) -> None:
    """Shut NODEs out of the runs provisioned in DIR: certificate, rights at the broker, signature. A site's name: its
    bridge."""
    from coordinator.provisioning import provision as work

    work.revoke(folder, nodes, now=dt.datetime.now(dt.timezone.utc))
    yard = work.Yard(folder)
    click.echo(f"revoked: {', '.join(nodes)}")
    for name, part in (("broker", yard.broker), *((path.name, path) for path in sorted(yard.site("").glob("*")))):
        click.echo(
            f"{name + ':':12} copy {part / 'revoked.crl'} and {part / 'access.acl'} there, "
            "then systemctl reload mosquitto"
        )
    click.echo(f"coordinator: copy {yard.enrolled} there")
