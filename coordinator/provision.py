# SPDX-License-Identifier: Apache-2.0
"""Everything that lets a run's machines know each other, in one folder, ready to copy.

    authority/     the certificate authority and what it issued; stays offline
    broker/        certificate, revocations, access rules and configuration of mosquitto
    coordinator/   certificate, signing key, the nodes' public keys, sections for the job file
    nodes/<id>/    certificate, signing key, sections for that node's file

What is there is kept: no key is ever written twice, so that nodes can join later and an interrupted call can be repeated. A node's
folder, or the keys in it, may go for good once its device has them.
"""

from __future__ import annotations

import datetime as dt
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from cryptography import x509

from coordinator.brokerfiles import BROKER, COORDINATOR, BrokerOptions, access_rules, configuration, connection
from coordinator.certificates import AUTHORITY_DAYS, Authority, check_host, new_key, new_signing_key, public_key_of
from fedcore.durable import flush_folder, write_durably
from fedcore.errors import ConfigError
from fedcore.identity import Enrolment

__all__ = ["Provisioned", "Yard", "provision", "revoke"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OFFLINE = """\
Whoever has authority.key can make certificates for this run and let anybody in.
Keep this folder offline: on a machine without network, or on a stick in a drawer; `fedkrso provision` and `fedkrso revoke`
need it, the broker, the coordinator and the nodes never do. issued.json lists every certificate that was made.
"""


class _Issued(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate that was made: whose, which, until when."""

    name: str
    serial: str
    until: str


class _Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`authority/issued.json`."""

    runs: tuple[str, ...]
    broker: BrokerOptions
    issued: tuple[_Issued, ...] = ()
    public_keys: dict[str, str] = {}
    """For signatures, of the coordinator and of every node; kept here because a node's folder may leave for its device."""
    revoked: tuple[str, ...] = ()


@dataclass
class Provisioned:
    """What a call did, by name of broker, coordinator or node."""

    added: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    broker_folder: str = ""


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

    def client(self, name: str) -> Path:
        """The folder of the coordinator or of a node."""
        return self.root / COORDINATOR if name == COORDINATOR else self.root / "nodes" / name

    def signing_key(self, name: str) -> Path:
        """The secret Ed25519 key of the coordinator or of a node."""
        return self.client(name) / "signing.key"


def provision(
    folder: Path,
    run: str,
    nodes: Sequence[str],
    *,
    hosts: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    now: dt.datetime,
    days: int = 730,
    renew: Iterable[str] = (),
) -> Provisioned:
    """Make what is missing for a run and its nodes.

    Args:
        folder: Where; what is there from an earlier call stays.
        run: The run. In a folder that has one already, it is one more run of the same machines.
        nodes: Ids of nodes; those that are there are kept.
        hosts: What devices connect to, host names and addresses; added to those of earlier calls.
        options: Other fields of `BrokerOptions`; what is not named stays as it was.
        now: The time, with its zone.
        days: How long new certificates of the broker and of clients are good for.
        renew: Whose certificates are made anew, on the same keys: node ids, `coordinator`, `broker`.

    Raises:
        ConfigError: A name that cannot be one, no host, a node that is revoked.
    """
    yard, renew = Yard(folder), tuple(renew)
    _check_names(run, nodes, days)
    register = _opened(yard, run, hosts, options)
    if gone := [name for name in (*nodes, *renew) if name in register.revoked]:
        raise ConfigError(f"{gone[0]!r} is revoked and stays so", place="NODE", remedy="give the device another id")
    certified = {entry.name for entry in register.issued}
    if unknown := [name for name in renew if name not in certified]:
        raise _unknown(unknown[0], certified)
    _check_authority(yard, register)
    for part in (yard.root, yard.authority, yard.broker):
        part.mkdir(parents=True, exist_ok=True)
        part.chmod(0o700)
    (yard.authority / "README.txt").write_text(_OFFLINE, encoding="utf-8")
    _save_register(yard, register)
    authority = _authority(yard, register, now)
    done = Provisioned(broker_folder=register.broker.folder)
    everyone = (BROKER, COORDINATOR, *sorted({*certified - {BROKER, COORDINATOR}, *nodes} - {*register.revoked}))
    for name in everyone:
        register = _certify(yard, authority, register, name, now, days, renew=name in renew, done=done)
    _write_rules(yard, authority, register, now)
    return done


def revoke(folder: Path, nodes: Sequence[str], *, now: dt.datetime) -> None:
    """Shut nodes out for good: their certificates, their rights at the broker, their signatures.

    Raises:
        ConfigError: No such folder or node.
    """
    yard = Yard(folder)
    register = _load_register(yard)
    known = {entry.name for entry in register.issued} - {BROKER, COORDINATOR}
    for node in nodes:
        if node not in known:
            raise _unknown(node, known)
    _check_authority(yard, register)
    register = msgspec.structs.replace(register, revoked=tuple(sorted({*register.revoked, *nodes})))
    _save_register(yard, register)
    _write_rules(yard, _authority(yard, register, now), register, now)


def _check_names(run: str, nodes: Sequence[str], days: int) -> None:
    for place, name in (("RUN", run), *(("NODE", node) for node in nodes)):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a name", place=place, remedy="letters, digits, '.', '_' and '-', at most 64")
        if place == "NODE" and name in (BROKER, COORDINATOR):
            raise ConfigError(f"a node cannot be called {name!r}", place=place, remedy="give the device another id")
    if not 1 <= days <= AUTHORITY_DAYS:
        raise ConfigError(f"{days} days are outside 1 to {AUTHORITY_DAYS}", place="--days")


def _unknown(name: str, known: set[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    return ConfigError(f"{name!r} was never provisioned here", place="NODE", remedy=remedy)


def _opened(yard: Yard, run: str, hosts: Sequence[str], options: Mapping[str, Any]) -> _Register:
    """The register with this call's run and broker in it."""
    register = _load_register(yard) if yard.register.exists() else _Register((), BrokerOptions(hosts=()))
    known = tuple(dict.fromkeys((*register.broker.hosts, *map(check_host, hosts))))
    if not known:
        raise ConfigError(
            "the broker's certificate needs a host",
            place="--broker-host",
            remedy="write what devices connect to, such as --broker-host broker.example.org or --broker-host 192.168.1.10",
        )
    broker = msgspec.structs.replace(register.broker, hosts=known, **options)
    register = msgspec.structs.replace(register, runs=tuple(dict.fromkeys((*register.runs, run))), broker=broker)
    if not 1 <= register.broker.port <= 65535:
        raise ConfigError(f"{register.broker.port} is not a port", place="--port", remedy="write 1 to 65535; 8883 is usual")
    return register


def _check_authority(yard: Yard, register: _Register) -> None:
    """Another authority must never take the place of one that is only kept elsewhere."""
    if register.issued and not all((yard.authority / name).exists() for name in ("authority.pem", "authority.key")):
        raise ConfigError("the authority is not here", place=str(yard.authority), remedy="bring back authority.pem and authority.key")


def _authority(yard: Yard, register: _Register, now: dt.datetime) -> Authority:
    certificate, pem = yard.authority / "authority.pem", _secret(yard.authority / "authority.key", new_key)
    if not certificate.exists():
        write_durably(certificate, Authority.new(register.runs[0], pem, now).pem())
    return Authority.load(certificate.read_bytes(), pem)


def _certify(
    yard: Yard, authority: Authority, register: _Register, name: str, now: dt.datetime, days: int, *, renew: bool, done: Provisioned
) -> _Register:
    """Keys and a certificate for the broker or a client, unless they are there, or were and went to their machine for good."""
    folder = yard.broker if name == BROKER else yard.client(name)
    stem = BROKER if name == BROKER else "certificate"
    key_path, certificate = folder / f"{stem}.key", folder / f"{stem}.pem"
    there = certificate.exists()
    renew = renew or (there and name == BROKER and not _names_hosts(certificate, register.broker.hosts))
    if not key_path.exists() and any(entry.name == name for entry in register.issued):
        if renew:
            raise ConfigError(f"the key of {name!r} is not here", place=str(key_path), remedy="bring it back for a new certificate")
        done.kept.append(name)
        return register
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    key = _secret(key_path, new_key)
    write_durably(folder / "authority.pem", authority.pem())
    if name != BROKER:
        signing = _secret(yard.signing_key(name), lambda: (new_signing_key() + "\n").encode("ascii")).decode("ascii").strip()
        register = msgspec.structs.replace(register, public_keys={**register.public_keys, name: public_key_of(signing)})
    if not there or renew:
        serial = x509.random_serial_number()
        until = min(now + dt.timedelta(days=days), authority.certificate.not_valid_after_utc)
        entry = _Issued(name, f"{serial:x}", until.isoformat("T", "seconds"))
        # Noted before it exists: a certificate that nobody knows of could never be revoked.
        register = msgspec.structs.replace(register, issued=(*register.issued, entry))
        _save_register(yard, register)
        if name == BROKER:
            write_durably(certificate, authority.broker(register.broker.hosts, key, serial, now, days))
        else:
            write_durably(certificate, authority.client(name, key, serial, now, days))
    (done.kept if there and not renew else done.renewed if there else done.added).append(name)
    return register


def _names_hosts(certificate: Path, hosts: Sequence[str]) -> bool:
    names = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(hosts) <= {str(entry.value) for entry in names}


def _write_rules(yard: Yard, authority: Authority, register: _Register, now: dt.datetime) -> None:
    """Whatever follows from the register: the broker's files, the enrolment, every client's sections."""
    gone = set(register.revoked)
    revoked = (int(entry.serial, 16) for entry in register.issued if entry.name in gone)
    write_durably(yard.broker / "revoked.crl", authority.revocations(revoked, now))
    nodes = sorted(register.public_keys.keys() - {COORDINATOR})
    allowed = [name for name in nodes if name not in gone]
    write_durably(yard.broker / "mosquitto.conf", configuration(register.broker, register.runs).encode())
    write_durably(yard.broker / "access.acl", access_rules(allowed, register.runs).encode())
    coordinator = register.public_keys[COORDINATOR]
    enrolment = Enrolment(coordinator, {name: register.public_keys[name] for name in nodes}, register.revoked)
    yard.enrolled.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(yard.enrolled, msgspec.json.format(msgspec.json.encode(enrolment)) + b"\n")
    for name in (COORDINATOR, *allowed):
        if yard.client(name).exists():
            write_durably(yard.client(name) / "connection.toml", connection(name, register.broker, coordinator).encode())


def _secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """A secret file's content; made if it is not there, readable by its owner only from the start, and never written again."""
    if not path.exists():
        beside = path.with_name(path.name + ".new")
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        flush_folder(path.parent)
    return path.read_bytes()


def _load_register(yard: Yard) -> _Register:
    try:
        return msgspec.json.decode(yard.register.read_bytes(), type=_Register)
    except FileNotFoundError:
        raise ConfigError("nothing is provisioned here", place=str(yard.root), remedy="fedkrso provision RUN --out DIR ...") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", place=str(yard.register), remedy="take it from a copy") from None


def _save_register(yard: Yard, register: _Register) -> None:
    write_durably(yard.register, msgspec.json.format(msgspec.json.encode(register)) + b"\n")
