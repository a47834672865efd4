# SPDX-License-Identifier: Apache-2.0
"""What a broker and its clients are told: mosquitto's configuration and access rules, and the sections of job and node files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from fedcore.wire.messages import Topics

__all__ = ["BROKER", "COORDINATOR", "BrokerOptions", "access_rules", "configuration", "connection"]

COORDINATOR, BROKER = "coordinator", "broker"
_TEMPLATES = Environment(loader=PackageLoader("coordinator"), undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701 - no HTML


class BrokerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What mosquitto's configuration says; the folder is where its files will lie on the broker's machine."""

    hosts: tuple[str, ...]
    """What devices connect to: host names and addresses, all of them in the broker's certificate."""
    port: int = 8883
    folder: str = "/etc/mosquitto/fedkrso"
    address: str = ""
    """The interface to listen on; every one by default."""
    persistence: str = "/var/lib/mosquitto"
    """Where sessions and retained messages are kept; empty for nowhere."""
    autosave_seconds: int = 60
    user: str = ""
    """Whom mosquitto runs as when root starts it; `mosquitto` by default."""
    max_packet_bytes: int = 2_000_000
    """The largest message it takes."""


def configuration(broker: BrokerOptions, runs: Sequence[str]) -> str:
    """mosquitto's configuration file."""
    return _TEMPLATES.get_template("mosquitto.conf").render(runs=runs, **msgspec.structs.asdict(broker))


def access_rules(nodes: Sequence[str], runs: Sequence[str]) -> str:
    """mosquitto's access rules; who is not among the nodes may do nothing."""
    users = [{"name": name, "rights": list(_rights(name, runs))} for name in (COORDINATOR, *nodes)]
    return _TEMPLATES.get_template("mosquitto.acl").render(users=users)


def connection(name: str, broker: BrokerOptions, coordinator_key: str) -> str:
    """The `[broker]` and `[trust]` sections of the coordinator's job file or of a node's file."""
    host = f"[{broker.hosts[0]}]" if ":" in broker.hosts[0] else broker.hosts[0]
    trust = 'enrolled = "enrolled.json"' if name == COORDINATOR else f'coordinator_key = "{coordinator_key}"'
    return f"""\
# For {"the job file" if name == COORDINATOR else f"the node file of {name}"}. Paths are relative to the file that names them.
[broker]
url = "mqtts://{host}:{broker.port}"
ca_file = "authority.pem"
certificate_file = "certificate.pem"
key_file = "certificate.key"

[trust]
signing_key = "signing.key"
{trust}
"""


def _rights(name: str, runs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What a client may write and read; a node nothing outside its own prefix."""
    for run in runs:
        topics = Topics(run)
        outcome = f"{topics.prefix}/outcome/#"
        if name == COORDINATOR:
            yield from (("write", topics.plan), ("write", outcome), ("write", topics.down("+", "#")))
            yield from (("read", topics.status("+")), ("read", topics.up("+", "#")), ("readwrite", topics.probe))
        else:
            yield from (("read", topics.plan), ("read", outcome), ("read", topics.down(name, "#")))
            yield from (("write", topics.status(name)), ("write", topics.up(name, "#")))
