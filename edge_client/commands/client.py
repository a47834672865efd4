# SPDX-License-Identifier: Apache-2.0
"""`fedkrso client run`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from fedcore.errors import FedkrsoError
from fedcore.system.logs import LOG_FORMATS, Line, LogFormat, LogWriter

__all__ = ["client_run"]


@click.command()
@click.argument("node_file", type=click.Path(path_type=Path), metavar="NODE.toml")
@click.option("--check", is_flag=True, help="Check the file and the data that it names, and leave.")
@click.option("--stay", is_flag=True, help="Stay when the run is finished, for the next one of the same name.")
@click.option(
    "--log-format", "form", type=click.Choice(LOG_FORMATS), default="text", show_default=True, help="One line an event."
)
@click.option("--json", "as_json", is_flag=True, help="As --log-format json.")
def client_run(node_file: Path, check: bool, stay: bool, form: LogFormat, as_json: bool) -> None:
    """Take part in a run with this device's own data, until the run is finished; or in the runs of a fleet, one at a
    time.

    NODE.toml names the node, the run, the model folder, the data and the broker. The text never leaves this machine:
    what goes out are accumulators, the number of examples, the mean loss, and readings of memory and sensors. SIGHUP
    reads memory_budget and [policy] anew."""
    from edge_client.client import Client
    from edge_client.fleet.client import FleetClient
    from edge_client.install.notify import ServiceManager
    from edge_client.memory.allocator import keep_agent_small
    from edge_client.node import Node
    from fedcore.config.reading import load_config

    keep_agent_small()
    manager = ServiceManager()
    node = load_config(node_file, Node)
    client: Client | FleetClient
    if node.fleet:
        client = FleetClient(node, heartbeat=manager.beat, on_event=lambda line: say(line), place=str(node_file))
    else:
        client = Client.from_file(node_file, stay=stay, heartbeat=manager.beat, on_event=lambda line: say(line))
    run = node.run or node.fleet
    log = LogWriter(sys.stdout, "json" if as_json else form, run=run, node=node.node, prefix=f"{node.node}: ")

    def say(line: str) -> None:
        manager.say(line)
        log.say(line)

    if check:
        for line in client.examine():
            say(line)
        say(f"{node_file} is right")
        return

    def reload(*_: object) -> None:
        # A file that is being edited must not end a node: all stays until it can be read.
        try:
            client.obey(load_config(node_file, Node))
        except FedkrsoError as error:
            say(f"budget and policy stay: {error.one_line()}")

    def stop(*_: object) -> None:
        manager.stopping()
        client.leave()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, reload)
    try:
        client.run()
    except FedkrsoError as error:
        if as_json or form == "json":
            # Whoever collects the standard output alone learns the end too.
            log.say(Line(error.one_line(), event="failed", level="error", exit_code=error.exit_code))
        raise
    except KeyboardInterrupt:
        again = f"fedkrso client run {node_file}"
        log.say(
            Line(f"interrupted: what is trained is kept in {node.folder}; go on with: {again}", event="interrupted")
        )
        raise
    finally:
        manager.stopping()
