# SPDX-License-Identifier: Apache-2.0
"""An operator at the dashboard of a real run: broker, coordinator and agents as processes, the same commands as the
page sends."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import needs_mosquitto

from benchmarks.dashboard import url_of
from benchmarks.fleet import node_names, prepared
from benchmarks.fleet_row import Load
from coordinator.provisioning.broker import LocalBroker

NODES, TOKEN = 5, "0123456789abcdef-alice"


def test_pause_exclude_resume_and_end_a_round_of_a_real_run(tmp_path: Path) -> None:
    needs_mosquitto()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {TOKEN}\n")
    tokens.chmod(0o600)
    flags = ("--dashboard=127.0.0.1:0", f"--dashboard-token-file={tokens}")
    users = ("coordinator", *node_names(NODES))
    published_state: list[Any] = []
    with (
        LocalBroker(tmp_path / "broker", users, kind="mosquitto", tls=True, run="fleet") as broker,
        prepared(Load(NODES, 3, quorum=3, train_seconds=1.0), tmp_path, broker, flags=flags) as fleet,
    ):
        thread = threading.Thread(target=lambda: published_state.append(fleet.run(900.0)))
        thread.start()
        address = url_of(fleet)

        def ask(path: str, body: dict[str, str] | None = None) -> tuple[int, Any]:
            connection = http.client.HTTPConnection(*address, timeout=120)
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            connection.request(
                "GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers
            )
            answer = connection.getresponse()
            found = answer.status, json.loads(answer.read())
            connection.close()
            return found

        def run_until(enough: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
            deadline = time.monotonic() + 120
            while not enough(view := ask("/api/run")[1]):
                assert time.monotonic() < deadline and thread.is_alive(), view
                time.sleep(0.05)
            return view  # type: ignore[no-any-return]

        run_until(lambda view: view["phase"] == "open")
        assert ask("/api/commands", {"command": "end_round"})[0] == 409
        status, said = ask("/api/commands", {"command": "pause"})
        assert (status, said) == (202, {"said": "paused: round 1 goes on to its end, and no other opens"})
        run_until(lambda view: view["phase"] == "waiting" and view["rows"])
        assert ask("/api/commands", {"command": "exclude", "node": "node-04"})[0] == 409
        assert ask("/api/commands", {"command": "exclude", "node": "node-004"})[0] == 202
        time.sleep(1.5)
        view = run_until(lambda view: view["excluded"])
        assert (view["phase"], view["paused"], view["excluded"], len(view["rows"])) == (
            "waiting",
            True,
            ["node-004"],
            1,
        )
        assert ask("/api/commands", {"command": "resume"})[0] == 202
        view = run_until(lambda view: len(view["rows"]) >= 2 or view["phase"] == "finishing")
        node = ask("/api/nodes/node-001")[1]
        assert node["node"]["readings"]["power_watts"] == 7.4 and any(node["history"]["worker_anonymous_bytes"])
        events = ask("/api/events")[1]["events"]
        thread.join(100)
    assert published_state and not published_state[0]["trouble"] and published_state[0]["nodes_with_the_digest"] == 0, (
        published_state
    )
    summary = json.loads((tmp_path / "fleet" / "summary.json").read_text())
    assert [row["participants"] for row in summary["rounds"]] == [node_names(NODES), node_names(4), node_names(4)]
    # Nobody waits for the last word of the excluded one.
    assert {summary["nodes"][name]["digest"] for name in node_names(4)} == {summary["final"]["digest"]}
    said = [event["text"] for event in events if event["kind"] == "command"]
    assert [text.split(":")[0] for text in said] == [
        f"{name} by alice" for name in ("end_round", "pause", "exclude", "exclude", "resume")
    ]
