# SPDX-License-Identifier: Apache-2.0
"""Brokers in a register: the central one, and those of sites that bridge to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from coordinator.provisioning.brokerfiles import BROKER, BrokerOptions
from coordinator.provisioning.certificates import check_host
from coordinator.provisioning.register import Register, Site
from fedcore.errors import ConfigError

__all__ = ["with_broker", "with_site"]


def with_broker(register: Register, hosts: Sequence[str], options: Mapping[str, Any]) -> Register:
    """The register with hosts and options of the central broker added.

    Raises:
        ConfigError: It has no host, or a port that is none.
    """
    return msgspec.structs.replace(register, broker=_merged(register.broker, hosts, options))


def with_site(
    register: Register, name: str, nodes: Sequence[str], hosts: Sequence[str], options: Mapping[str, Any], central: str
) -> Register:
    """The register with a site's broker made or changed, and with these nodes at it and nowhere else.

    Args:
        register: What there is.
        name: The site, or `broker` for the central broker.
        nodes: Who connects there from now on.
        hosts, options: Of the site's broker, as in `with_broker`.
        central: How the site reaches the central broker, HOST or HOST:PORT; empty for what it was.

    Raises:
        ConfigError: A node has this name, the site has no host, or the central broker's certificate is not good for
            that host.
    """
    sites = {
        other: msgspec.structs.replace(site, nodes=_without(site.nodes, nodes))
        for other, site in register.sites.items()
    }
    if name == BROKER:
        return msgspec.structs.replace(register, sites=sites)
    if name in register.public_keys or name in nodes:
        raise ConfigError(f"{name!r} is a node", place="--site", remedy="give the site another name")
    site = sites.get(name, Site(broker=BrokerOptions(hosts=())))
    site = Site(
        broker=_merged(site.broker, hosts, options),
        nodes=tuple(sorted({*site.nodes, *nodes})),
        central=_checked(central, register.broker) if central else site.central,
    )
    return msgspec.structs.replace(register, sites={**sites, name: site})


def _without(nodes: Sequence[str], gone: Sequence[str]) -> tuple[str, ...]:
    return tuple(node for node in nodes if node not in gone)


def _merged(broker: BrokerOptions, hosts: Sequence[str], options: Mapping[str, Any]) -> BrokerOptions:
    known = tuple(dict.fromkeys((*broker.hosts, *map(check_host, hosts))))
    if not known:
        raise ConfigError(
            "the broker's certificate needs a host",
            place="--broker-host",
            remedy="write what devices connect to, "
            "such as --broker-host broker.example.org or --broker-host 192.168.1.10",
        )
    broker = msgspec.structs.replace(broker, hosts=known, **options)
    if not 1 <= broker.port <= 65535:
        raise ConfigError(f"{broker.port} is not a port", place="--port", remedy="write 1 to 65535; 8883 is usual")
    if not 0 <= broker.websockets <= 65535 or broker.websockets == broker.port:
        raise ConfigError(
            f"{broker.websockets} is no port for WebSockets",
            place="--websockets",
            remedy="write another than --port has; 443 is usual",
        )
    return broker


def _checked(central: str, broker: BrokerOptions) -> str:
    host, colon, port = central.rpartition(":") if central.count(":") == 1 else (central, "", "")
    host = check_host(host)
    if host not in broker.hosts:
        raise ConfigError(
            f"the central broker's certificate is not for {host}",
            place="--central-host",
            remedy=f"add it first: fedkrso provision RUN --out DIR --broker-host {host}",
        )
    if colon and not (port.isdigit() and 1 <= int(port) <= 65535):
        raise ConfigError(f"{port!r} is not a port", place="--central-host", remedy="write HOST or HOST:PORT")
    return f"{host}:{port}" if colon else host
