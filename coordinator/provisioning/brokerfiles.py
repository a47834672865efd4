# SPDX-License-Identifier: Apache-2.0
"""What a broker and its clients are told: mosquitto's configuration and access rules, and the sections of job and node
files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from fedcore.wire.answers import AnswerTopics
from fedcore.wire.messages import UP_KINDS, Topics

__all__ = [
    "BROKER",
    "COORDINATOR",
    "Bridge",
    "BrokerOptions",
    "access_rules",
    "configuration",
    "connection",
    "leader",
    "loopback_configuration",
    "rights_of",
    "site_rules",
]

COORDINATOR, BROKER = "coordinator", "broker"
_TEMPLATES = Environment(  # noqa: S701 - no HTML
    loader=PackageLoader("coordinator.provisioning"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


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
    websockets: int = 0
    """The port for MQTT over WebSockets; 0 for none."""


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """The link of a site's broker to the central one.

    Attributes:
        name: The site: the common name of the bridge's certificate, so its user name and client id at the central
            broker.
        host, port: The central broker, as the site reaches it.
    """

    name: str
    host: str
    port: int


def configuration(broker: BrokerOptions, runs: Sequence[str], bridge: Bridge | None = None) -> str:
    """mosquitto's configuration file, of the central broker or of a site's with its bridge."""
    return _TEMPLATES.get_template("mosquitto.conf").render(runs=runs, bridge=bridge, **msgspec.structs.asdict(broker))


def loopback_configuration(
    folder: str, port: int, *, persistence: bool = False, user: str = "", max_packet_bytes: int | None = None
) -> str:
    """mosquitto's configuration file for a first try on one machine: passwords, no encryption, the loopback interface
    alone."""
    return _TEMPLATES.get_template("mosquitto-laptop.conf").render(
        folder=folder, port=port, persistence=persistence, user=user, max_packet_bytes=max_packet_bytes
    )


def access_rules(
    nodes: Iterable[str],
    runs: Sequence[str],
    sites: Mapping[str, Iterable[str]] = MappingProxyType({}),
    fleets: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """The central broker's access rules; who is neither among the nodes nor a site may do nothing.

    Args:
        nodes: Those that connect here.
        runs: Their runs, and their fleets: a fleet's own topics are named as a run's are.
        sites: For each site's bridge, the nodes that it speaks for.
        fleets: Which of the runs are fleets, and how many runs of each have a certificate of their own.
    """
    rights = rights_of(nodes, runs, fleets)
    bridges = {name: list(_client(theirs, _all_topics(runs, fleets))) for name, theirs in sites.items()}
    return _rules(rights | bridges)


def rights_of(
    nodes: Iterable[str], runs: Sequence[str], fleets: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Iterable[tuple[str, str]]]:
    """What the coordinator and each node may do: `read`, `write` or `readwrite`, and with which topics.

    Args:
        nodes: Those that connect here.
        runs: Their runs, and their fleets.
        fleets: Which of the runs are fleets, and how many runs of each have a certificate of their own.
    """
    leads = list(_coordinator(_all_topics(runs, fleets)))
    leaders = (COORDINATOR, *(leader(number) for number in range(1, max(fleets.values(), default=0) + 1)))
    return {
        **dict.fromkeys(leaders, leads),
        **{name: list(_client([name], _all_topics(runs, fleets))) for name in nodes},
    }


def site_rules(nodes: Iterable[str], runs: Sequence[str], fleets: Iterable[str] = ()) -> str:
    """The access rules of a site's broker: its nodes alone. The coordinator is never there, and the bridge is part of
    the broker itself."""
    return _rules({name: _client([name], _all_topics(runs, fleets)) for name in nodes})


def leader(number: int) -> str:
    """The common name of the certificate of one of a fleet's runs at once: no node has a slash in its name.

    Args:
        number: From 1.
    """
    return f"{COORDINATOR}/{number}"


def _all_topics(runs: Sequence[str], fleets: Iterable[str]) -> list[Topics]:
    """Of runs and fleets, and of every run of a fleet: which there will be is not known."""
    return [*map(Topics, runs), *(Topics("+", fleet) for fleet in fleets)]


def connection(name: str, broker: BrokerOptions, coordinator_key: str, enrolment: tuple[str, str]) -> str:
    """The `[broker]` and `[trust]` sections of the coordinator's job file or of a node's file.

    Args:
        name: Whose.
        broker: What it connects to.
        coordinator_key: The coordinator's public key.
        enrolment: Public key of whoever enrols nodes, and its signature over the name and the key of this one.
    """
    host = f"[{broker.hosts[0]}]" if ":" in broker.hosts[0] else broker.hosts[0]
    trust = 'enrolled = "enrolled.json"'
    if name != COORDINATOR:
        authority, signature = enrolment
        trust = f'coordinator_key = "{coordinator_key}"\nauthority_key = "{authority}"\nenrolment = "{signature}"'
    # mosquitto takes any path.
    other = f'# url = "wss://{host}:{broker.websockets}/mqtt"\n' if broker.websockets else ""
    return f"""\
# For {"the job file" if name == COORDINATOR else f"the node file of {name}"}. Paths are relative to the file that names
# them.
[broker]
url = "mqtts://{host}:{broker.port}"
{other}ca_file = "authority.pem"
certificate_file = "certificate.pem"
key_file = "certificate.key"

[trust]
signing_key = "signing.key"
{trust}
"""


def _rules(rights: Mapping[str, Iterable[tuple[str, str]]]) -> str:
    users = [{"name": name, "rights": list(theirs)} for name, theirs in rights.items()]
    return _TEMPLATES.get_template("mosquitto.acl").render(users=users)


def _coordinator(all_topics: Sequence[Topics]) -> Iterator[tuple[str, str]]:
    """What the coordinator may write and read: it speaks for no node, and hears itself on its probe."""
    all_topics = tuple(all_topics)
    for topics in all_topics:
        # It reads its plan too: so it notices a second coordinator, and what an earlier run of the name left.
        yield from (("readwrite", topics.plan), ("write", f"{topics.prefix}/state/#"), ("write", topics.down("+", "#")))
        yield from (("read", topics.status("+")), ("read", topics.up("+", "#")), ("readwrite", topics.probe))
    for answers in _answers(all_topics):
        yield from (("read", answers.of("+", "up")), ("write", answers.of("+", "down")))
        yield from (("write", answers.thresholds), ("write", answers.resolved("+")))


def _client(nodes: Iterable[str], all_topics: Sequence[Topics]) -> Iterator[tuple[str, str]]:
    """What a node, or a bridge that speaks for some nodes, may write and read: nothing outside their own prefixes."""
    nodes, all_topics = tuple(nodes), tuple(all_topics)
    for topics in all_topics:
        yield from (("read", topics.plan), ("read", f"{topics.prefix}/state/#"))
        for node in nodes:
            yield from (
                ("read", topics.down(node, "#")),
                ("write", topics.status(node)),
                # By name: what a node retains where it should not is then a few messages.
                *(("write", topics.up(node, kind)) for kind in UP_KINDS),
            )
    for answers in _answers(all_topics):
        yield from (("read", answers.thresholds), ("read", answers.resolved("+")))
        for node in nodes:
            yield from (("read", answers.of(node, "down")), ("write", answers.of(node, "up")))


def _answers(all_topics: Iterable[Topics]) -> Iterator[AnswerTopics]:
    """Beside each run, or fleet: what devices ask a larger model goes by its name."""
    yield from (AnswerTopics(topics.run) for topics in all_topics if not topics.fleet)
