# SPDX-License-Identifier: Apache-2.0
"""Everything that lets a run's machines know each other, in one folder, ready to copy.

    authority/     the certificate authority, the key that enrols nodes, and what was issued; stays offline
    broker/        certificate, revocations, access rules and configuration of mosquitto
    coordinator/   certificate, signing key, the nodes' public keys, sections for the job file
    nodes/<id>/    certificate, signing key, sections for that node's file
    sites/<name>/  for a site with a broker of its own: what broker/ has, and the certificate of its bridge to the
    central broker

What is there is kept: no key is ever written twice, so that nodes can join later and an interrupted call can be
repeated. A node's folder, or the keys in it, may go for good once its device has them."""

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

from coordinator.provisioning.brokerfiles import (
    BROKER,
    COORDINATOR,
    BrokerOptions,
    access_rules,
    configuration,
    connection,
    site_rules,
)
from coordinator.provisioning.certificates import AUTHORITY_DAYS, Authority, new_key, new_signing_key, public_key_of
from coordinator.provisioning.register import Holder, Issued, Register, Yard, holders, load_register, save_register
from coordinator.provisioning.sites import with_broker, with_site
from fedcore.errors import ConfigError
from fedcore.system.durable import flush_folder, write_durably
from fedcore.wire.identity import Enrolment, SigningKey
from fedcore.wire.secure import certified_bytes

__all__ = ["Provisioned", "Yard", "provision", "revoke"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OFFLINE = """\
Whoever has authority.key can make certificates for this run and let anybody in.
Keep this folder offline: on a machine without network, or on a stick in a drawer. `fedkrso provision` and
`fedkrso revoke` need it, the broker, the coordinator and the nodes never do.
issued.json lists every certificate that was made.
    """


@dataclass
class Provisioned:
    """What a call did, by name of broker, coordinator or node."""

    added: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    site: str = ""
    """The site that the call was about."""
    broker_folder: str = ""
    """Where that site's broker, or the central one, will have its files on its machine."""


def provision(
    folder: Path,
    run: str,
    nodes: Sequence[str],
    *,
    hosts: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    site: str = "",
    central: str = "",
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
        site: A site with a broker of its own, which hosts and options are then about, and where the nodes named in this
            call connect. `broker` is the central one. Empty: the central one too, but nodes of a site stay there.
        central: How that site reaches the central broker, HOST or HOST:PORT.
        now: The time, with its zone.
        days: How long new certificates of the broker and of clients are good for.
        renew: Whose certificates are made anew, on the same keys: node ids, `coordinator`, `broker`.

    Raises:
        ConfigError: A name that cannot be one, no host, a node that is revoked.
    """
    yard, renew = Yard(folder), tuple(renew)
    _check_names(run, nodes, days, site)
    register = _opened(yard, run, nodes, site, central, hosts, options)
    if gone := [name for name in (*nodes, *renew, site) if name in register.revoked]:
        raise ConfigError(f"{gone[0]!r} is revoked and stays so", place="NODE", remedy="give the device another id")
    certified = {entry.machine for entry in register.issued}
    if unknown := [name for name in renew if name not in certified]:
        raise _unknown(unknown[0], certified)
    _check_authority(yard, register)
    for part in (yard.root, yard.authority, yard.broker):
        part.mkdir(parents=True, exist_ok=True)
        part.chmod(0o700)
    (yard.authority / "README.txt").write_text(_OFFLINE, encoding="utf-8")
    save_register(yard, register)
    authority = _authority(yard, register, now)
    done = Provisioned(site=site if site in register.sites else "")
    done.broker_folder = (register.sites[site].broker if done.site else register.broker).folder
    everyone = sorted({*certified - {BROKER, COORDINATOR, *register.sites}, *nodes} - {*register.revoked})
    for holder in holders(yard, register, everyone):
        register = _certify(yard, authority, register, holder, now, days, renew=holder.machine in renew, done=done)
    _write_rules(yard, authority, _with_enrolling(yard, register), now)
    return done


def revoke(folder: Path, nodes: Sequence[str], *, now: dt.datetime) -> None:
    """Shut nodes out for good: their certificates, their rights at the broker, their signatures; or sites, whose bridge
    loses its own.

    Raises:
        ConfigError: No such folder, node or site.
    """
    yard = Yard(folder)
    register = load_register(yard)
    known = {entry.machine for entry in register.issued} - {BROKER, COORDINATOR}
    for node in nodes:
        if node not in known:
            raise _unknown(node, known)
    _check_authority(yard, register)
    register = _with_enrolling(yard, register)
    register = msgspec.structs.replace(register, revoked=tuple(sorted({*register.revoked, *nodes})))
    save_register(yard, register)
    _write_rules(yard, _authority(yard, register, now), register, now)


def _check_names(run: str, nodes: Sequence[str], days: int, site: str) -> None:
    for place, name in (("RUN", run), ("--site", site or BROKER), *(("NODE", node) for node in nodes)):
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be a name", place=place, remedy="letters, digits, '.', '_' and '-', at most 64"
            )
        if place == "NODE" and name in (BROKER, COORDINATOR):
            raise ConfigError(f"a node cannot be called {name!r}", place=place, remedy="give the device another id")
    if site == COORDINATOR:
        raise ConfigError(f"a site cannot be called {site!r}", place="--site", remedy="give it another name")
    if not 1 <= days <= AUTHORITY_DAYS:
        raise ConfigError(f"{days} days are outside 1 to {AUTHORITY_DAYS}", place="--days")


def _unknown(name: str, known: set[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    return ConfigError(f"{name!r} was never provisioned here", place="NODE", remedy=remedy)


def _opened(
    yard: Yard,
    run: str,
    nodes: Sequence[str],
    site: str,
    central: str,
    hosts: Sequence[str],
    options: Mapping[str, Any],
) -> Register:
    """The register with this call's run, broker and site in it."""
    register = load_register(yard) if yard.register.exists() else Register((), BrokerOptions(hosts=()))
    register = msgspec.structs.replace(register, runs=tuple(dict.fromkeys((*register.runs, run))))
    if taken := [node for node in nodes if node in register.sites]:
        raise ConfigError(f"{taken[0]!r} is a site", place="NODE", remedy="give the device another id")
    if central and site in ("", BROKER):
        raise ConfigError(
            "only a site has a central broker", place="--central-host", remedy="name the site: --site NAME"
        )
    if site in ("", BROKER):
        register = with_broker(register, hosts, options)
    elif not register.broker.hosts:
        raise ConfigError(
            "there is no central broker yet",
            place="--site",
            remedy=f"first: fedkrso provision {run} --out {yard.root} --broker-host HOST",
        )
    return with_site(register, site, nodes, hosts, options, central) if site else register


def _check_authority(yard: Yard, register: Register) -> None:
    """Another authority must never take the place of one that is only kept elsewhere."""
    names = ["authority.pem", "authority.key", *(["enrolling.key"] if register.enrolling else [])]
    if register.issued and not all((yard.authority / name).exists() for name in names):
        remedy = f"bring back {', '.join(names[:-1])} and {names[-1]}"
        raise ConfigError("the authority is not here", place=str(yard.authority), remedy=remedy)


def _authority(yard: Yard, register: Register, now: dt.datetime) -> Authority:
    certificate, pem = yard.authority / "authority.pem", _secret(yard.authority / "authority.key", new_key)
    if not certificate.exists():
        write_durably(certificate, Authority.new(register.runs[0], pem, now).pem())
    return Authority.load(certificate.read_bytes(), pem)


def _certify(
    yard: Yard,
    authority: Authority,
    register: Register,
    holder: Holder,
    now: dt.datetime,
    days: int,
    *,
    renew: bool,
    done: Provisioned,
) -> Register:
    """Keys and a certificate for a broker or a client, unless they are there, or were and went to their machine for
    good."""
    there = holder.certificate.exists()
    renew = renew or (there and bool(holder.hosts) and not _names_hosts(holder.certificate, holder.hosts))
    issued = any(entry.name == holder.name for entry in register.issued)
    if not holder.key.exists() and issued:
        if renew:
            raise ConfigError(
                f"the key of {holder.name!r} is not here",
                place=str(holder.key),
                remedy="bring it back for a new certificate",
            )
        done.kept.append(holder.name)
        return register
    holder.folder.mkdir(parents=True, exist_ok=True)
    holder.folder.chmod(0o700)
    key = _secret(holder.key, new_key)
    write_durably(holder.folder / "authority.pem", authority.pem())
    if holder.signs:
        signing = _secret(yard.signing_key(holder.name), _new_line).decode("ascii").strip()
        register = msgspec.structs.replace(
            register, public_keys={**register.public_keys, holder.name: public_key_of(signing)}
        )
    if not there or renew:
        serial = x509.random_serial_number()
        until = min(now + dt.timedelta(days=days), authority.certificate.not_valid_after_utc)
        entry = Issued(holder.name, f"{serial:x}", until.isoformat("T", "seconds"))
        # Noted before it exists: a certificate that nobody knows of could never be revoked.
        register = msgspec.structs.replace(register, issued=(*register.issued, entry))
        save_register(yard, register)
        if holder.hosts:
            write_durably(holder.certificate, authority.broker(holder.hosts, key, serial, now, days))
        else:
            write_durably(holder.certificate, authority.client(holder.subject, key, serial, now, days))
    (done.kept if there and not renew else done.renewed if there else done.added).append(holder.name)
    return register


def _names_hosts(certificate: Path, hosts: Sequence[str]) -> bool:
    names = (
        x509.load_pem_x509_certificate(certificate.read_bytes())
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    return set(hosts) <= {str(entry.value) for entry in names}


def _write_rules(yard: Yard, authority: Authority, register: Register, now: dt.datetime) -> None:
    """Whatever follows from the register: the brokers' files, the enrolment, every client's sections."""
    gone = set(register.revoked)
    revocations = authority.revocations(
        (int(entry.serial, 16) for entry in register.issued if entry.machine in gone), now
    )
    nodes = sorted(register.public_keys.keys() - {COORDINATOR})
    allowed = [name for name in nodes if name not in gone]
    theirs = {
        name: [node for node in site.nodes if node not in gone]
        for name, site in register.sites.items()
        if name not in gone
    }
    here = [name for name in allowed if register.site_of(name) is None]
    rules = access_rules(here, register.runs, theirs, register.fleets)
    _write_broker(yard.broker, configuration(register.broker, register.runs), rules, revocations)
    for name, own in theirs.items():
        if yard.site(name).exists():
            text = configuration(register.sites[name].broker, register.runs, register.bridge(name))
            _write_broker(yard.site(name), text, site_rules(own, register.runs, register.fleets), revocations)
    coordinator = register.public_keys[COORDINATOR]
    enrolment = Enrolment(coordinator, {name: register.public_keys[name] for name in nodes}, register.revoked)
    yard.enrolled.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(yard.enrolled, msgspec.json.format(msgspec.json.encode(enrolment)) + b"\n")
    enrols = _enrols(yard)
    for name in (COORDINATOR, *allowed):
        if yard.client(name).exists():
            signature = enrols.sign(certified_bytes(name, register.public_keys[name])).hex()
            text = connection(name, register.broker_of(name), coordinator, (enrols.public.hex, signature))
            write_durably(yard.client(name) / "connection.toml", text.encode())


def _enrols(yard: Yard) -> SigningKey:
    return SigningKey(bytes.fromhex(_secret(yard.enrolling_key, _new_line).decode("ascii")))


def _with_enrolling(yard: Yard, register: Register) -> Register:
    """The register with the key that enrols nodes in it; a folder of before there was one gets it now."""
    if not register.enrolling:
        register = msgspec.structs.replace(register, enrolling=_enrols(yard).public.hex)
        save_register(yard, register)
    return register


def _new_line() -> bytes:
    return (new_signing_key() + "\n").encode("ascii")


def _write_broker(folder: Path, text: str, rules: str, revocations: bytes) -> None:
    write_durably(folder / "revoked.crl", revocations)
    write_durably(folder / "mosquitto.conf", text.encode())
    write_durably(folder / "access.acl", rules.encode())


def _secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """A secret file's content; made if it is not there, readable by its owner only from the start, and never written
    again."""
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
