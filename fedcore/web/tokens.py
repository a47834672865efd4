# SPDX-License-Identifier: Apache-2.0
"""Tokens that let somebody in: read from a file that only its owner can read, compared in constant time."""

from __future__ import annotations

import hmac
import re
from collections.abc import Container, Iterator
from pathlib import Path

from fedcore.errors import ConfigError

__all__ = ["Tokens", "load_tokens", "require_new", "token_lines"]

_LEAST_CHARACTERS = 16
_TOKEN = re.compile(r"[\x21-\x7e]+")
_OPERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class Tokens:
    """Operators by token.

    Args:
        operators: Name by token.
    """

    def __init__(self, operators: dict[str, str]) -> None:
        self._operators = [(token.encode(), name) for token, name in operators.items()]

    def __bool__(self) -> bool:
        return bool(self._operators)

    def operator(self, header: str) -> str | None:
        """Who sends this `Authorization` header; None for nobody we know. Takes the same time whatever of a token is
        right."""
        scheme, _, given = header.partition(" ")
        secret = given.strip().encode("utf-8", "replace")
        found = [name for token, name in self._operators if hmac.compare_digest(token, secret)]
        return found[0] if found and scheme.lower() == "bearer" else None


def load_tokens(path: Path) -> Tokens:
    """A file of tokens: one a line, after its operator's name if it has one. `#` begins a comment.

    Raises:
        ConfigError: It cannot be read, others can read it, or a line of it is no token.
    """
    operators: dict[str, str] = {}
    for place, words in token_lines(path, remedy=f"openssl rand -hex 24 > {path}; chmod 600 {path}"):
        name, token = (words[0], words[1]) if len(words) == 2 else ("operator", words[0])
        if len(words) > 2 or not _OPERATOR.fullmatch(name) or not _TOKEN.fullmatch(token):
            raise ConfigError("not TOKEN or NAME TOKEN", place=place)
        require_new(token, operators, place)
        operators[token] = name
    if not operators:
        raise ConfigError("no token in this file", place=str(path), remedy=f"openssl rand -hex 24 > {path}")
    return Tokens(operators)


def token_lines(path: Path, *, remedy: str) -> Iterator[tuple[str, list[str]]]:
    """Lines of a file of tokens: their place, and their words. `#` begins a comment.

    Args:
        path: The file.
        remedy: How to make one, where it cannot be read.

    Raises:
        ConfigError: It cannot be read, or others can read it.
    """
    place = str(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        readable_by_others = path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file cannot be read: {error}", place=place, remedy=remedy) from None
    if readable_by_others:
        raise ConfigError("others can read this token file", place=place, remedy=f"chmod 600 {path}")
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield f"{place}:{number}", words


def require_new(token: str, known: Container[str], place: str) -> None:
    """Check that a token cannot be guessed, and is nobody else's.

    Raises:
        ConfigError: It is too short, or there twice.
    """
    if len(token) < _LEAST_CHARACTERS:
        words = f"a token has at least {_LEAST_CHARACTERS} characters"
        raise ConfigError(words, place=place, remedy="openssl rand -hex 24")
    if token in known:
        raise ConfigError("this token is there twice", place=place)
