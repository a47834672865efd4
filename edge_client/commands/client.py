# SPDX-License-Identifier: Apache-2.0
"""The client's commands."""

from __future__ import annotations

import json
import random
import secrets
import signal
import sys
from pathlib import Path

import click
import msgspec

from fedcore.errors import ConfigError, FedkrsoError
from fedcore.system.logs import LOG_FORMATS, Line, LogFormat, LogWriter

__all__ = ["bench_memory", "client_run", "doctor", "model_describe"]


@click.command()
@click.argument("node_file", type=click.Path(path_type=Path), metavar="NODE.toml")
@click.option("--check", is_flag=True, help="Check the file and leave.")
@click.option("--stay", is_flag=True, help="Stay when the run is finished, for the next one of the same name.")
@click.option(
    "--log-format", "form", type=click.Choice(LOG_FORMATS), default="text", show_default=True, help="One line an event."
)
@click.option("--json", "as_json", is_flag=True, help="As --log-format json.")
def client_run(node_file: Path, check: bool, stay: bool, form: LogFormat, as_json: bool) -> None:
    """Take part in a run with this device's own data, until the run is finished.

    NODE.toml names the node, the run, the model folder, the data and the broker. The text never leaves this machine:
    what goes out are accumulators, the number of examples, the mean loss, and readings of memory and sensors. SIGHUP
    reads memory_budget and [policy] anew."""
    from edge_client.agent.agent import Agent
    from edge_client.install.notify import ServiceManager
    from edge_client.memory.allocator import keep_agent_small
    from edge_client.memory.limits import budget_bytes
    from edge_client.node import Node
    from edge_client.process.packages import require_training_packages
    from fedcore.config.broker import mqtt_settings
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.reading import load_config
    from fedcore.transport.mqtt import MqttTransport
    from fedcore.wire.identity import load_public_key, load_signing_key

    node = load_config(node_file, Node)
    model_folder = resolve_model_folder(node.model_folder, place=f"{node_file}: model_folder")
    budget = budget_bytes(node.memory_budget, place=f"{node_file}: memory_budget")
    settings = mqtt_settings(node.broker, f"fedkrso-{node.run}-{node.node}")

    trust = node.trust
    key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
    coordinator = None if trust.coordinator_key is None else load_public_key(trust.coordinator_key)

    manager = ServiceManager()
    log = LogWriter(sys.stdout, "json" if as_json else form, run=node.run, node=node.node, prefix=f"{node.node}: ")

    def say(line: str) -> None:
        manager.say(line)
        log.say(line)

    if check:
        say(f"{node_file} is right; memory budget {budget / 2**20:.0f} MiB")
        return
    require_training_packages()
    keep_agent_small()
    # Spreads reconnects of many nodes; decides nothing in the model.
    jitter = random.Random(secrets.randbits(64))  # noqa: S311
    transport = MqttTransport(settings, jitter)
    agent = Agent(
        node, model_folder, budget, transport, jitter, key=key, coordinator=coordinator, say=say, heartbeat=manager.beat
    )

    def reload(*_: object) -> None:
        # A file that is being edited must not end a node: all stays until it can be read.
        try:
            changed = load_config(node_file, Node)
            budget = budget_bytes(changed.memory_budget, place=f"{node_file}: memory_budget")
        except FedkrsoError as error:
            say(f"budget and policy stay: {error.one_line()}")
        else:
            agent.set_budget(budget)
            agent.set_policy(changed.policy)

    def stop(*_: object) -> None:
        manager.stopping()
        agent.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, reload)
    try:
        agent.run(leave_when_finished=not stay)
    except FedkrsoError as error:
        if as_json or form == "json":
            # Whoever collects the standard output alone learns the end too.
            log.say(Line(error.one_line(), event="failed", level="error", exit_code=error.exit_code))
        raise
    finally:
        manager.stopping()


@click.command()
@click.argument("model")
@click.option("--task", default="text-classification", show_default=True)
@click.option("--labels", default="", help="Comma-separated label set.")
@click.option("--max-length", default=128, show_default=True)
def model_describe(model: str, task: str, labels: str, max_length: int) -> None:
    """Print, as JSON, which layers and tensors of MODEL are trained. For `model.schema_file` of a coordinator without
    torch."""
    from edge_client.worker.model.loading import describe
    from fedcore.config.models import resolve_model_folder
    from fedcore.config.sections import TaskSection
    from fedcore.weights.checkpoint import Checkpoint
    from fedcore.worker.messages import Described

    try:
        section = msgspec.convert(
            {"kind": task, "labels": tuple(filter(None, labels.split(","))), "max_length": max_length}, TaskSection
        )
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), place="--task") from None
    except ConfigError as error:
        raise ConfigError(error.message, place="--task", remedy=error.remedy) from None
    schema = describe(Checkpoint(resolve_model_folder(model, place="MODEL")), section)
    click.echo(msgspec.json.encode(Described(schema, section)))


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
    **files: str | None,
) -> None:
    """Check this machine, each check with what was found and the remedy. Ends with 1 if any is an error.

    Software, device, memory, how it computes (real products, forward and backward), clock and service; with --node also
    the node's data, model, certificates, disk and broker."""
    import os
    import time

    from devices.detection import detect
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
        found = list(examine(around))
    finally:
        device.close()
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1) if as_json else as_text(found))
    if any(check.state == "error" for check in found):
        raise click.exceptions.Exit(1)


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
    click.echo(f"{'method':14} {'checkpointing':14} {'allocator':10} {'static MB':>10} {'above MB':>10} {'step s':>8}")
    for row in found:
        above = (row["peak_bytes"] - row["static_bytes"]) / 1e6
        click.echo(
            f"{row['method']:14} {row['checkpointing']!s:14} {row['allocator']:10} "
            f"{row['static_bytes'] / 1e6:10.0f} {above:10.0f} {row['step_seconds']:8.2f}"
        )
