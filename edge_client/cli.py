# SPDX-License-Identifier: Apache-2.0
"""The client's commands."""

from __future__ import annotations

import json
import random
import secrets
import signal
from pathlib import Path

import click

from fedcore.errors import ConfigError, FedkrsoError, ModelError

__all__ = ["bench_memory", "client_run", "doctor", "model_describe"]


@click.command()
@click.argument("node_file", type=click.Path(path_type=Path), metavar="NODE.toml")
@click.option("--check", is_flag=True, help="Check the file and leave.")
@click.option("--stay", is_flag=True, help="Stay when the run is finished, for the next one of the same name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def client_run(node_file: Path, check: bool, stay: bool, as_json: bool) -> None:
    """Take part in a run with this device's own data, until the run is finished.

    NODE.toml names the node, the run, the model folder, the data and the broker. The text never leaves this machine: what goes
    out are accumulators, the number of examples, the mean loss, and memory readings. SIGHUP reads memory_budget anew.
    """
    from edge_client.agent import Agent
    from edge_client.memory.limits import budget_bytes
    from edge_client.node import Node
    from fedcore.brokerconfig import mqtt_settings
    from fedcore.config import load_config
    from fedcore.identity import load_public_key, load_signing_key
    from fedcore.modelfolder import resolve_model_folder
    from fedcore.transport.mqtt import MqttTransport

    node = load_config(node_file, Node)
    model_folder = resolve_model_folder(node.model_folder, place=f"{node_file}: model_folder")
    budget = budget_bytes(node.memory_budget, place=f"{node_file}: memory_budget")
    settings = mqtt_settings(node.broker, f"fedkrso-{node.run}-{node.node}")

    trust = node.trust
    key = None if trust.signing_key is None else load_signing_key(Path(trust.signing_key))
    coordinator = None if trust.coordinator_key is None else load_public_key(trust.coordinator_key)

    def say(line: str) -> None:
        click.echo(json.dumps({"node": node.node, "event": line}) if as_json else f"{node.node}: {line}")

    if check:
        say(f"{node_file} is right; memory budget {budget / 2**20:.0f} MiB")
        return
    # Spreads reconnects of many nodes; decides nothing in the model.
    jitter = random.Random(secrets.randbits(64))  # noqa: S311
    agent = Agent(node, model_folder, budget, MqttTransport(settings, jitter), jitter, key=key, coordinator=coordinator, say=say)

    def reload(*_: object) -> None:
        # A file that is being edited must not end a node: the budget stays until it can be read.
        try:
            agent.set_budget(budget_bytes(load_config(node_file, Node).memory_budget, place=f"{node_file}: memory_budget"))
        except FedkrsoError as error:
            say(f"the budget stays: {error.one_line()}")

    signal.signal(signal.SIGTERM, lambda number, frame: agent.stop())
    signal.signal(signal.SIGHUP, reload)
    agent.run(leave_when_finished=not stay)


@click.command()
@click.argument("model")
@click.option("--task", default="text-classification", show_default=True)
@click.option("--labels", default="", help="Comma-separated label set.")
@click.option("--max-length", default=128, show_default=True)
def model_describe(model: str, task: str, labels: str, max_length: int) -> None:
    """Print, as JSON, which layers and tensors of MODEL are trained. For `model.schema_file` of a coordinator without torch."""
    import msgspec

    from edge_client.worker.model import describe
    from fedcore.checkpoint import Checkpoint
    from fedcore.job import TaskSection
    from fedcore.modelfolder import resolve_model_folder
    from fedcore.worker import Described

    try:
        section = msgspec.convert({"kind": task, "labels": tuple(filter(None, labels.split(","))), "max_length": max_length}, TaskSection)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), place="--task") from None
    schema = describe(Checkpoint(resolve_model_folder(model, place="MODEL")), section)
    click.echo(msgspec.json.encode(Described(schema, section)))


@click.command()
@click.option("--broker", "url", help="Also check this broker: mqtts://host:port, or mqtt://host:port without encryption.")
@click.option("--username", help="Login at the broker.")
@click.option("--password", help="Its password.", envvar="FEDKRSO_PASSWORD")
@click.option("--ca-file", help="Authority that the broker's certificate must come from; the system's by default.")
@click.option("--certificate-file", help="Our certificate; an agent connected with it loses its link for a moment.")
@click.option("--key-file", help="Its key.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(url: str | None, username: str | None, password: str | None, as_json: bool, **files: str | None) -> None:
    """Check this machine: Python, packages, a real int8 forward and backward, memory, and the broker with its limits."""
    from edge_client.doctor import checks
    from fedcore.brokerconfig import mqtt_settings
    from fedcore.job import BrokerSection

    broker = None
    if url is not None:
        # Who types mqtt:// here has chosen it; the finding says what that means.
        section = BrokerSection(url=url, insecure=True, username=username, password=password, **files)
        broker = mqtt_settings(section, "fedkrso-doctor")
    results = checks(broker)
    if as_json:
        click.echo(json.dumps([{"check": r.name, "ok": r.ok, "found": r.found, "remedy": r.remedy} for r in results], indent=1))
    else:
        for r in results:
            click.echo(f"{'ok  ' if r.ok else 'FAIL'}  {r.name}: {r.found}" + (f" ({r.remedy})" if not r.ok and r.remedy else ""))
    if not all(r.ok for r in results):
        raise (ModelError("this machine is not ready", remedy="see the failed checks above") if as_json else click.exceptions.Exit(1))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench_memory(as_json: bool) -> None:
    """Training memory and step time against PEFT LoRA on bitsandbytes int8 and full fine-tuning, each row in its own process."""
    from edge_client.bench_memory import rows

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
