# SPDX-License-Identifier: Apache-2.0
"""A server as a process, and a client as plain as they come."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.patience import ended, until

__all__ = ["Answer", "Served", "chat", "served"]


class Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers = response.status, response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Of a stream; its last word `[DONE]` as a text."""
        parts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]

    @property
    def text(self) -> str:
        """What was said."""
        if self.headers["content-type"].startswith("application/json"):
            return str(self.json["choices"][0]["message"]["content"])
        said = [event["choices"][0]["delta"] for event in self.events if event != "[DONE]" and event.get("choices")]
        return "".join(delta.get("content", "") for delta in said)


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log
        self.port = int(until(self._address, [process], said=lambda: self.said).group(1))

    def _address(self) -> Any:
        return re.search(r"at http://127\.0\.0\.1:(\d+)", self.said)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        connection.request("GET", path, headers=headers or {})
        try:
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        self.send(connection, path, body, headers)
        try:
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def send(
        self, connection: http.client.HTTPConnection, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})

    @property
    def worker(self) -> psutil.Process | None:
        found = psutil.Process(self.process.pid).children()
        return found[0] if found else None


def chat(words: str = "hello", **fields: Any) -> dict[str, Any]:
    """A request for an answer."""
    return {"messages": [{"role": "user", "content": words}], **fields}


@contextmanager
def served(folder: Path, *arguments: object) -> Iterator[Served]:
    """`fedkrso client serve` on a free port, until it is told to end."""
    log = folder / "serve.log"
    command = [sys.executable, "-m", "fedkrso", "client", "serve", *map(str, arguments), "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield Served(process, log)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
