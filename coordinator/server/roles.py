# SPDX-License-Identifier: Apache-2.0
"""Who may do what at a server: by a token, or by the word of a reverse proxy that was named for it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, get_args

from coordinator.server.settings import ProxySection, ServerFiles, ServerSettings
from fedcore.errors import ConfigError
from fedcore.fields.checked import clean_text
from fedcore.web.entrance import Entrance
from fedcore.web.tokens import Tokens, require_new, token_lines

__all__ = ["ROLES", "Doorkeeper", "Person", "Role", "load_roles", "owners_token", "people_of"]

Role = Literal["viewer", "operator", "owner"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
"""Each may do what those before it may."""
_MOST_NAME = 100


@dataclass(frozen=True)
class Person:
    """Somebody whom we know.

    Attributes:
        name: As it stands beside what was submitted.
        role: What they may do.

    Example:
        >>> Person("ann", "operator").may("viewer"), Person("ann", "operator").may("owner")
        (True, False)
    """

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether what this role may do is theirs to do."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Doorkeeper:
    """Says who asks.

    Args:
        people: By token.
        proxy: Whose header counts; None for nobody's.
        say: Gets a line for an address that guesses tokens.

    Example:
        >>> door = Doorkeeper({"t" * 16: Person("ann", "owner")}, None, print)
        >>> door.person("10.0.0.9", {"authorization": "Bearer " + "t" * 16})
        Person(name='ann', role='owner')
        >>> door.person("10.0.0.9", {}) is None
        True
    """

    def __init__(self, people: dict[str, Person], proxy: ProxySection | None, say: Callable[[str], None]) -> None:
        self._proxy = proxy
        self._people = {f"{person.role} {person.name}": person for person in people.values()}
        tokens = Tokens({token: f"{person.role} {person.name}" for token, person in people.items()})
        self._entrance = Entrance(tokens, say)

    def person(self, address: str, headers: dict[str, str]) -> Person | None:
        """Who asks; None for a stranger.

        Args:
            address: Of the client's socket.
            headers: By names in small letters.

        Raises:
            TooManyGuesses: The address has to wait, whatever it sends.
        """
        proxy = self._proxy
        if proxy is not None and address in proxy.addresses and (name := headers.get(proxy.header.lower(), "").strip()):
            return self._named(proxy, clean_text(name)[:_MOST_NAME])
        known = self._entrance.operator(address, headers.get("authorization", ""))
        return None if known is None else self._people[known]

    @staticmethod
    def _named(proxy: ProxySection, name: str) -> Person | None:
        patterns: dict[Role, tuple[str, ...]] = {
            "owner": proxy.owners,
            "operator": proxy.operators,
            "viewer": proxy.viewers,
        }
        role = next((role for role, ours in patterns.items() if any(fnmatchcase(name, one) for one in ours)), None)
        return None if role is None else Person(name, role)


def load_roles(path: Path) -> dict[str, Person]:
    """A file of tokens, `ROLE NAME TOKEN` a line; `#` begins a comment.

    Raises:
        ConfigError: It cannot be read, others can read it, or a line of it is something else.
    """
    remedy = f'(umask 077; echo "owner ann $(openssl rand -hex 24)" > {path})'
    people: dict[str, Person] = {}
    for where, words in token_lines(path, remedy=remedy):
        role = next((role for role in ROLES if role == words[0]), None)
        if len(words) != 3 or role is None or len(words[1]) > _MOST_NAME:
            raise ConfigError("not ROLE NAME TOKEN", place=where, remedy=f"a role is one of {', '.join(ROLES)}")
        if not words[2].isascii():
            raise ConfigError("a token is of ASCII characters", place=where, remedy="openssl rand -hex 24")
        require_new(words[2], people, where)
        people[words[2]] = Person(words[1], role)
    if not people:
        raise ConfigError("no token in this file", place=str(path), remedy=remedy)
    return people


def owners_token(files: ServerFiles) -> Path:
    """The file with the owner's token, made where it is not there: readable by this user alone from the start."""
    path = files.token
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"owner owner {secrets.token_hex(24)}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    return path


def people_of(settings: ServerSettings, files: ServerFiles) -> dict[str, Person]:
    """Whom a server knows by a token.

    Raises:
        ConfigError: The file of tokens is wrong.
    """
    return load_roles(owners_token(files) if settings.token_file is None else Path(settings.token_file))
