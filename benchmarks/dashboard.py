# SPDX-License-Identifier: Apache-2.0
"""The dashboard of a run with many nodes, asked while its rounds go on: time of each kind of request, and the
coordinator's memory.

    python -m benchmarks.dashboard [--nodes 300] [--rounds 3] [--viewers 8] [--out dashboard.jsonl]

The fleet is that of `benchmarks.fleet`: real agents with telemetry and full sensor readings every second, over TLS, all
of them finishing at the same instant. Meanwhile pages follow the stream of events, one half of them compressed as
browsers ask for it, and each kind of request is asked for four times a second over connections that stay open. The
nodes stand for other machines: they yield the processor to the coordinator (`nice`)."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.fleet import Fleet, node_names, prepared
from benchmarks.fleet_row import Load
from coordinator.provisioning.broker import LocalBroker

__all__ = ["Asking", "Viewer", "percentile", "url_of"]

_PAUSE_SECONDS = 0.25
_PATHS = (
    "/",
    "/api/run",
    "/api/nodes/{node}",
    "/api/events",
    "/api/session",
    "/metrics",
    "/healthz",
    "/static/style.css",
)
_START_SECONDS = 120.0


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed.

    Example:
        >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
        2.0
    """
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


def url_of(fleet: Fleet) -> tuple[str, int]:
    """Where the coordinator says that its dashboard is."""
    found = _found(fleet.folder / "coordinator.log", r"dashboard: http://([\d.]+):(\d+)/")
    return found[1], int(found[2])


def _found(path: Path, pattern: str) -> re.Match[str]:
    """The first match in a file that is being written."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        found = re.search(pattern, path.read_text(errors="replace") if path.exists() else "")
        if found:
            return found
        time.sleep(0.05)
    raise RuntimeError(f"{pattern!r} does not come in {path}")


class Asking(threading.Thread):
    """Asks for one path again and again, over one connection.

    Args:
        address: Of the dashboard.
        path: What to ask for; `{node}` is a node, another one each time.
        nodes: Names.
        over: Ends it.
    """

    def __init__(self, address: tuple[str, int], path: str, nodes: list[str], over: threading.Event) -> None:
        super().__init__(name=path)
        self.path, self._address, self._nodes, self._over = path, address, nodes, over
        self.milliseconds: list[float] = []
        self.largest_bytes = 0
        self.failed: list[str] = []

    def run(self) -> None:
        """Until it is over, or the coordinator has ended."""
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        number = 0
        while not self._over.wait(_PAUSE_SECONDS):
            number += 1
            path = self.path.format(node=self._nodes[number * 7 % len(self._nodes)])
            began = time.perf_counter()
            try:
                connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                # At the end of the run its server goes; before that this is a failure.
                self.failed.append(f"{path}: {error!r}")
                connection.close()
                continue
            self.milliseconds.append(1e3 * (time.perf_counter() - began))
            self.largest_bytes = max(self.largest_bytes, len(body))
            if answer.status != 200:
                self.failed.append(f"{path}: {answer.status} {body[:100]!r}")
        connection.close()


class Viewer(threading.Thread):
    """A page that follows the run.

    Args:
        address: Of the dashboard.
        gzip: Whether it takes compressed streams, as browsers do.
    """

    def __init__(self, address: tuple[str, int], *, gzip: bool) -> None:
        super().__init__(name=f"viewer gzip={gzip}")
        self._address, self._gzip = address, gzip
        self.bytes, self.parts = 0, 0
        self.gaps: list[float] = []
        """Seconds from one piece of news to the next."""

    def run(self) -> None:
        """Until the stream ends."""
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        connection.request("GET", "/api/stream", headers={"Accept-Encoding": "gzip"} if self._gzip else {})
        answer, heard = connection.getresponse(), time.perf_counter()
        with contextlib.suppress(OSError, http.client.HTTPException):
            while data := answer.read1(1 << 20):
                self.bytes += len(data)
                now = time.perf_counter()
                # Pieces of one message come close together.
                if now - heard > 0.3:
                    self.parts += 1
                    self.gaps.append(now - heard)
                heard = now
        connection.close()


def measure(fleet: Fleet, viewers: int) -> dict[str, Any]:
    """A whole run of the fleet, with its dashboard asked and watched."""
    found: dict[str, Any] = {}
    asking: list[Asking] = []
    watching: list[Viewer] = []
    over = threading.Event()

    def ask() -> None:
        address = url_of(fleet)
        # All nodes are there.
        _found(fleet.folder / "events.log", r"round_opened")
        asking.extend(Asking(address, path, node_names(fleet.load.nodes), over) for path in _PATHS)
        watching.extend(Viewer(address, gzip=number % 2 == 0) for number in range(viewers))
        for thread in (*asking, *watching):
            thread.start()

    starter = threading.Thread(target=ask)
    starter.start()
    ended = threading.Thread(target=_when_there, args=[fleet.folder / "fleet" / "summary.json", over])
    ended.start()
    try:
        found = fleet.run(1200.0)
    finally:
        over.set()
        for thread in (starter, ended, *asking, *watching):
            thread.join(60)
    times = [value for one in asking for value in one.milliseconds]
    compressed = [viewer for number, viewer in enumerate(watching) if number % 2 == 0]
    plain = [viewer for number, viewer in enumerate(watching) if number % 2]
    kept = (
        "nodes",
        "seconds_until_closed",
        "coordinator_peak_mb",
        "coordinator_processor_seconds",
        "exactly_once",
        "telemetry",
        "trouble",
    )
    return {
        **{name: found[name] for name in kept},
        "seconds": found["seconds"],
        "viewers": viewers,
        "requests": len(times),
        "milliseconds": {one.path: _times(one.milliseconds) for one in asking} | {"all": _times(times)},
        "largest_kb": {one.path: round(one.largest_bytes / 1e3, 1) for one in asking},
        "stream_kb_per_second": {
            "gzip": round(sum(v.bytes for v in compressed) / max(1, len(compressed)) / found["seconds"] / 1e3, 1),
            "plain": round(sum(v.bytes for v in plain) / max(1, len(plain)) / found["seconds"] / 1e3, 1),
        },
        "stream_news_seconds": {"p50": _gap(watching, 0.5), "p95": _gap(watching, 0.95), "max": _gap(watching, 1.0)},
        "failed": [text for one in asking for text in one.failed][:5],
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def _when_there(path: Path, over: threading.Event) -> None:
    """What follows the summary is the server's end."""
    while not path.exists() and not over.wait(0.02):
        pass
    over.set()


def _times(values: list[float]) -> dict[str, float]:
    return (
        {name: round(percentile(values, share), 1) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))}
        if values
        else {}
    )


def _gap(viewers: list[Viewer], share: float) -> float | None:
    gaps = [gap for viewer in viewers for gap in viewer.gaps]
    return round(percentile(gaps, share), 2) if gaps else None


def main() -> None:
    """One run, one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--viewers", type=int, default=8)
    parser.add_argument("--train-seconds", type=float, default=0.0)
    parser.add_argument(
        "--off", action="store_true", help="Without a dashboard, for its share of memory and processor."
    )
    parser.add_argument("--folder", type=Path, help="Keep logs and ledgers here.")
    parser.add_argument("--out", type=Path, default=Path("dashboard.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = options.folder or Path(temporary)
        users = ("coordinator", *node_names(options.nodes))
        broker = stack.enter_context(LocalBroker(folder / "broker", users, kind="mosquitto", tls=True, run="fleet"))
        flags = () if options.off else ("--dashboard=127.0.0.1:0",)
        fleet = stack.enter_context(
            prepared(
                Load(options.nodes, options.rounds, train_seconds=options.train_seconds),
                folder,
                broker,
                flags=flags,
                nodes_nice=10,
            )
        )
        row = fleet.run(1200.0) if options.off else measure(fleet, options.viewers)
    sys.stdout.write(json.dumps(row) + "\n")
    options.out.write_text(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
