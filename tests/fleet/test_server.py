# SPDX-License-Identifier: Apache-2.0
"""A server whose runs, and which itself, are killed: real processes, a real broker, no nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import needs_mosquitto

from tests.fleet.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    needs_mosquitto()
    found = Place(tmp_path)
    yield found
    found.close()


def test_runs_outlive_the_server_and_what_dies_is_begun_again(place: Place) -> None:
    place.serve()
    assert place.say("submit", place.job("a")).startswith("a is running")
    place.until(lambda: place.rows()["a"]["words"] == "waits for nodes: 0 of 2 are there")
    first = place.pid("a")
    assert first is not None

    # The server is killed: its run goes on, and the next server begins no second one.
    place.kill()
    place.serve()
    assert place.pid("a") == first and place.rows()["a"]["state"] == "running"
    assert "a still runs, and goes on" in place.output()

    # The run is killed: it is begun again, by a server that did not start it.
    os.kill(first, signal.SIGKILL)
    place.until(lambda: place.pid("a") not in (None, first))
    assert "without a last word" in place.output()

    # Stopped: in order, with a last word; and a server that comes back leaves it so.
    assert place.say("stop", "a") == "a is being stopped\n"
    place.until(lambda: place.rows()["a"]["state"] == "stopped")
    assert place.pid("a") is None and (place.runs / "a" / "summary.json").exists()
    assert "unsigned messages" in place.say("log", "a")


@pytest.mark.slow
def test_what_cannot_run_has_failed_with_its_last_line(place: Place) -> None:
    place.serve()
    job = place.job("a")
    place.schema.rename(place.folder / "elsewhere.json")
    place.say("submit", job)
    place.until(lambda: place.rows()["a"]["state"] == "failed")
    assert "schema.json" in place.rows()["a"]["words"]
