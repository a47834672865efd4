# SPDX-License-Identifier: Apache-2.0
"""SERVER.toml: which fleet, how many runs at once, where to answer, and who may do what."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

import msgspec

from coordinator.dashboard.address import address_of
from fedcore.config.sections import BrokerSection, PathText, TrustSection
from fedcore.errors import ConfigError

__all__ = ["ProxySection", "ReleaseSection", "ServerFiles", "ServerSettings"]

_MOST_AT_ONCE = 64


class ProxySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[proxy]`: a reverse proxy in front of the server says who somebody is, by a header."""

    addresses: tuple[str, ...]
    """From which it connects; the header counts from there alone."""
    header: str
    """Which one: `X-Forwarded-Email`, `Remote-User`, whatever the proxy sets itself and never lets through."""
    owners: tuple[str, ...] = ()
    """Names by pattern, as the header gives them; the first role that fits counts."""
    operators: tuple[str, ...] = ()
    viewers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ConfigError("from where does the proxy connect?", place="proxy.addresses", remedy='["127.0.0.1"]')
        for text in self.addresses:
            try:
                ipaddress.ip_address(text)
            except ValueError:
                raise ConfigError(f"{text!r} is no address", place="proxy.addresses", remedy='["127.0.0.1"]') from None
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,63}", self.header) or self.header.lower() in _NOT_A_NAME:
            raise ConfigError(
                f"{self.header!r} names nobody", place="proxy.header", remedy="a header that the proxy sets itself"
            )


# Whoever asks sets these.
_NOT_A_NAME = {"authorization", "host", "origin", "cookie", "user-agent", "referer", "content-type"}


class ReleaseSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[release]`: a version of fedkrso that a share of the nodes is to run, where their owners accept it."""

    version: str
    sha256: str
    """Of its wheel: 64 hexadecimal characters."""
    share: float = 0.1
    """Of the nodes, 0 to 1. A larger one has all nodes of a smaller one."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-z.+!]{1,64}", self.version):
            raise ConfigError(f"{self.version!r} is no version", place="release.version", remedy="such as 0.3.0")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError("not 64 hexadecimal characters", place="release.sha256", remedy="sha256sum of the wheel")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"{self.share:g} is no share", place="release.share", remedy="0 to 1, such as 0.1")


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server file."""

    fleet: str
    """The fleet's name: nodes name it in place of a run."""
    runs: PathText = "runs"
    """Folder of runs; the server's own files are in `.server` there."""
    at_once: int = 4
    """Most runs that have a process at a time; the others wait in their order."""
    tries: int = 5
    """How often a run's process may end without a new round before the run has failed."""
    address: str = "127.0.0.1:8090"
    """Where it answers; port 0 takes a free one."""
    names: tuple[str, ...] = ()
    """Host names that a reverse proxy gives it."""
    token_file: PathText | None = None
    """Who may do what: `ROLE NAME TOKEN` a line. Left out: one owner's token, made at the first start."""
    look: Literal["token", "all"] = "token"
    """Who may look: whoever has a token, or whoever reaches the address."""
    certificates: PathText | None = None
    """Folder with a certificate for each run at once (`1.pem`, `1.key`, ...), where a broker knows its clients by
    their certificates. Left out: all have that of `[broker]`."""
    broker: BrokerSection
    trust: TrustSection = TrustSection()
    proxy: ProxySection | None = None
    release: ReleaseSection | None = None
    """Which version of fedkrso nodes are to run."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.fleet):
            raise ConfigError(
                f"{self.fleet!r} cannot be a fleet's name",
                place="fleet",
                remedy="letters, digits, '.', '_' and '-', at most 64",
            )
        for key, most in (("at_once", _MOST_AT_ONCE), ("tries", 1000)):
            if not 1 <= getattr(self, key) <= most:
                raise ConfigError(f"{key} is {getattr(self, key)}, it must be 1 to {most}", place=key)
        try:
            address_of(self.address)
        except ConfigError as error:
            raise ConfigError(error.message, place="address", remedy='"127.0.0.1:8090"') from None

    def broker_of(self, slot: int) -> BrokerSection:
        """How the run that has a slot connects.

        Args:
            slot: From 1.
        """
        if self.certificates is None:
            return self.broker
        files = Path(self.certificates)
        return msgspec.structs.replace(
            self.broker, certificate_file=str(files / f"{slot}.pem"), key_file=str(files / f"{slot}.key")
        )

    def check(self, place: str) -> None:
        """Look for the certificates.

        Raises:
            ConfigError: One is not there.
        """
        for slot in range(1, self.at_once + 1):
            broker = self.broker_of(slot)
            for path in (broker.certificate_file, broker.key_file) if self.certificates else ():
                if path is not None and not Path(path).is_file():
                    raise ConfigError(
                        f"there is no {path}",
                        place=f"{place}: certificates",
                        remedy=f"fedkrso provision {self.fleet} --fleet {self.at_once} makes one for each run at once",
                    )


class ServerFiles(msgspec.Struct, frozen=True):
    """The server's own files.

    Attributes:
        runs: The folder of runs.
    """

    runs: Path

    @property
    def root(self) -> Path:
        """No run has such a name."""
        return self.runs / ".server"

    @property
    def queue(self) -> Path:
        """SQLite: what is to run."""
        return self.root / "queue.sqlite"

    @property
    def url(self) -> Path:
        """Where the server answers, for commands on this machine."""
        return self.root / "url"

    @property
    def token(self) -> Path:
        """The owner's, where no file of tokens is named."""
        return self.root / "owner.token"

    def log(self, run: str) -> Path:
        """What a run's process says."""
        return self.root / "logs" / f"{run}.log"
