# SPDX-License-Identifier: Apache-2.0
"""Commands typed into the tuned model on a node: its server answers as OpenAI's clients expect it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from fedcore.errors import RunError
from fedcore.system.processes import die_with_parent

__all__ = ["ask_node"]

_ADDRESS = re.compile(r" at (http://\S+) ")
_ANSWER_SECONDS = 300.0
"""The first answer waits until the model is loaded."""
_MOST_TOKENS = 64


def ask_node(node_file: Path, commands: Sequence[str], log: Path) -> Iterator[str]:
    """A node's answers, each as it comes; its server runs for as long as they are asked for.

    Args:
        node_file: The node's. Its agent has taken the last state of the run.
        commands: One message each.
        log: What the server says.

    Raises:
        RunError: The server does not start.
    """
    with _serving(node_file, log) as url:
        for command in commands:
            yield _answer(url, command)


def _answer(url: str, command: str) -> str:
    asked = {"messages": [{"role": "user", "content": command}], "max_tokens": _MOST_TOKENS, "temperature": 0}
    request = Request(  # noqa: S310 - the server started here, on loopback
        f"{url.rstrip('/')}/v1/chat/completions",
        data=json.dumps(asked).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=_ANSWER_SECONDS) as reply:  # noqa: S310
        return str(json.load(reply)["choices"][0]["message"]["content"])


@contextmanager
def _serving(node_file: Path, log: Path) -> Iterator[str]:
    """The address of a node's server, which ends with the block."""
    command = [sys.executable, "-m", "fedkrso", "client", "serve", str(node_file), "--port", "0"]
    with log.open("ab") as errors:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=die_with_parent,
        )
    try:
        assert server.stdout is not None
        found = next((_ADDRESS.search(line) for line in server.stdout if _ADDRESS.search(line)), None)
        if found is None:
            raise RunError("the node's server does not start", place=str(log))
        yield found[1]
    finally:
        server.terminate()
        server.communicate()
