# SPDX-License-Identifier: Apache-2.0
"""A server, asked from a command: where it is, with which token, and what it answers."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from coordinator.server.roles import load_roles
from coordinator.server.settings import ServerFiles
from fedcore.errors import ConfigError, FedkrsoError, RunError

__all__ = ["Asked"]

_TIMEOUT_SECONDS = 40.0
_MOST_BYTES = 2**24


class Asked:
    """A server somewhere.

    Args:
        runs: Its folder of runs, where that is on this machine: it says where the server is and who its owner is.
        url: Where it is; empty to read it there.
        token_file: Whose first token is sent; None to read it there.

    Raises:
        ConfigError: There is no server of this folder, or no token.
    """

    def __init__(self, runs: Path, url: str = "", token_file: Path | None = None) -> None:
        files = ServerFiles(runs)
        try:
            self._url = (url or files.url.read_text(encoding="ascii")).rstrip("/")
        except (OSError, UnicodeDecodeError):
            remedy = "start it: fedkrso server run SERVER.toml; or name it: --server URL --token-file FILE"
            raise ConfigError("no server serves this folder of runs", place=str(runs), remedy=remedy) from None
        if not self._url.startswith(("http://", "https://")):
            raise ConfigError(f"{self._url!r} is no address", place="--server", remedy="http://127.0.0.1:8090")
        path = token_file or files.token
        if token_file is None and not path.exists():
            remedy = "--token-file FILE, with the line ROLE NAME TOKEN that you were given"
            raise ConfigError("whose token?", place=str(path), remedy=remedy)
        self._token = next(iter(load_roles(path)))

    def get(self, path: str) -> Any:
        """Ask for something.

        Raises:
            FedkrsoError: The server says no, or does not answer.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: object) -> Any:
        """Want something done.

        Raises:
            FedkrsoError: The server says no, or does not answer.
        """
        return self._ask("POST", path, msgspec.json.encode(body))

    def _ask(self, method: str, path: str, data: bytes | None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}{path}", data, headers, method=method)  # noqa: S310 - http alone
        # No proxy of the environment: it would be asked for a server on this machine, and see the token.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise RunError(
                f"the server does not answer: {reason}", place=self._url, remedy="fedkrso server run SERVER.toml"
            ) from None

    def _refused(self, error: urllib.error.HTTPError) -> FedkrsoError:
        try:
            said = json.loads(error.read(_MOST_BYTES))
            words, code = str(said["error"]), int(said.get("exit_code", 0))
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return RunError(f"the server answers {error.code}", place=self._url)
        if code in (2, 3, 4) or error.code in (400, 401, 403):
            return ConfigError(words)
        return RunError(words)
