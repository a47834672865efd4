# SPDX-License-Identifier: Apache-2.0
"""A provisioned folder's paths, and its register: which runs, brokers, sites and nodes there are and what was issued to
whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.provisioning.brokerfiles import BROKER, COORDINATOR, Bridge, BrokerOptions, leader
from fedcore.errors import ConfigError
from fedcore.system.durable import write_durably

__all__ = ["Holder", "Issued", "Register", "Site", "Yard", "holders", "load_register", "save_register"]


@dataclass(frozen=True)
class Yard:
    """The paths of a provisioned folder."""

    root: Path

    @property
    def authority(self) -> Path:
        """The authority's folder."""
        return self.root / "authority"

    @property
    def register(self) -> Path:
        """What was issued."""
        return self.authority / "issued.json"

    @property
    def broker(self) -> Path:
        """The broker's folder."""
        return self.root / BROKER

    @property
    def enrolled(self) -> Path:
        """The coordinator's and the nodes' public keys."""
        return self.root / COORDINATOR / "enrolled.json"

    @property
    def enrolling_key(self) -> Path:
        """The secret Ed25519 key that signs whose key is whose: nodes believe it more than the coordinator."""
        return self.authority / "enrolling.key"

    def site(self, name: str) -> Path:
        """The folder of a site's own broker."""
        return self.root / "sites" / name

    def client(self, name: str) -> Path:
        """The folder of the coordinator or of a node."""
        return self.root / COORDINATOR if name == COORDINATOR else self.root / "nodes" / name

    def signing_key(self, name: str) -> Path:
        """The secret Ed25519 key of the coordinator or of a node."""
        return self.client(name) / "signing.key"


class Issued(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate that was made: whose, which, until when."""

    name: str
    serial: str
    until: str

    @property
    def machine(self) -> str:
        """Whose it is: a site has two, for its listener and for its bridge."""
        return self.name.partition("/")[0]


class Site(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A site with a broker of its own, and the nodes that connect there."""

    broker: BrokerOptions
    nodes: tuple[str, ...] = ()
    central: str = ""
    """How the site reaches the central broker, HOST or HOST:PORT; its first host and port if empty."""


class Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was issued to whom, as `authority/issued.json` has it."""

    runs: tuple[str, ...]
    broker: BrokerOptions
    issued: tuple[Issued, ...] = ()
    public_keys: dict[str, str] = {}
    """For signatures, of the coordinator and of every node; kept here because a node's folder may leave for its
    device."""
    revoked: tuple[str, ...] = ()
    sites: dict[str, Site] = {}
    fleets: dict[str, int] = {}
    """Which of the runs are fleets, and how many runs of each have a certificate of their own."""
    enrolling: str = ""
    """Public key of whoever enrols nodes: another one must never take its place, nodes would not believe each other."""

    def site_of(self, node: str) -> str | None:
        """The site that a node belongs to; None for the central broker."""
        return next((name for name, site in self.sites.items() if node in site.nodes), None)

    def broker_of(self, node: str) -> BrokerOptions:
        """The broker that a client connects to."""
        site = self.site_of(node)
        return self.broker if site is None else self.sites[site].broker

    def bridge(self, site: str) -> Bridge:
        """The link of a site's broker to the central one."""
        central = self.sites[site].central or self.broker.hosts[0]
        # An IPv6 address has more than one colon, and then no port beside it.
        host, _, port = central.partition(":") if central.count(":") == 1 else (central, "", "")
        return Bridge(name=site, host=host, port=int(port or self.broker.port))


@dataclass(frozen=True)
class Holder:
    """One certificate's holder: its name in the register, its folder, and what its files are called.

    Attributes:
        hosts: What a broker's certificate is good for; empty for a client's.
        signs: Whether it has a key for signatures too.
        common_name: Of the certificate; empty for the machine's name.
    """

    name: str
    folder: Path
    stem: str = "certificate"
    hosts: tuple[str, ...] = ()
    signs: bool = False
    common_name: str = ""

    @property
    def subject(self) -> str:
        """Common name of the certificate."""
        return self.common_name or self.machine

    @property
    def key(self) -> Path:
        """Where the secret key lies."""
        return self.folder / f"{self.stem}.key"

    @property
    def certificate(self) -> Path:
        """Where the certificate lies."""
        return self.folder / f"{self.stem}.pem"

    @property
    def machine(self) -> str:
        """Whose it is; a site has two certificates, and the coordinator of a fleet one more for each run at once."""
        return self.name.partition("/")[0]


def holders(yard: Yard, register: Register, nodes: Iterable[str]) -> Iterator[Holder]:
    """Everyone who is to have a certificate."""
    yield Holder(BROKER, yard.broker, "broker", register.broker.hosts)
    yield Holder(COORDINATOR, yard.client(COORDINATOR), signs=True)
    for number in range(1, max(register.fleets.values(), default=0) + 1):
        folder = yard.client(COORDINATOR) / "certificates"
        yield Holder(leader(number), folder, str(number), common_name=leader(number))
    for name, site in sorted(register.sites.items()):
        if name not in register.revoked:
            yield Holder(name, yard.site(name), "broker", site.broker.hosts)
            yield Holder(f"{name}/bridge", yard.site(name), "bridge")
    for node in nodes:
        yield Holder(node, yard.client(node), signs=True)


def load_register(yard: Yard) -> Register:
    """The register of a folder.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    try:
        return msgspec.json.decode(yard.register.read_bytes(), type=Register)
    except FileNotFoundError:
        raise ConfigError(
            "nothing is provisioned here", place=str(yard.root), remedy="fedkrso provision RUN --out DIR ..."
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", place=str(yard.register), remedy="take it from a copy") from None


def save_register(yard: Yard, register: Register) -> None:
    """Write the register to `authority/issued.json`, so that it survives a power cut."""
    write_durably(yard.register, msgspec.json.format(msgspec.json.encode(register)) + b"\n")
