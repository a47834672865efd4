# SPDX-License-Identifier: Apache-2.0
"""Nodes that train and serve: real broker, coordinator, agents, servers and workers; the budget is one, and what is
published is what answers."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import needs_mosquitto
from workshop import program

from coordinator.provisioning.broker import LocalBroker
from tests.edge_client.serving.served import Served, chat, served
from tests.edge_client.serving.tiny_chat import write_tiny_chat
from tests.patience import Patience, until

CHAT = "/v1/chat/completions"
BUDGET_BYTES, SHARE = 1040 * 2**20, "540 MiB"
ROUNDS = 3
NODES = {"turns": "", "both": f'[serve]\nwhile_training = "go_on"\nmemory_budget = "{SHARE}"\n'}
JOB = """\
run = "replies"
seed = 3
[model]
folder = "{model}"
[task]
kind = "instruction"
max_length = 64
[method]
name = "fedkrso"
rank = 4
num_seeds = 2
interval_steps = 20
steps = 120
batch_size = 4
learning_rate = 1e-2
[round]
rounds = {rounds}
min_nodes = 2
quorum = 2
deadline_seconds = 600
finish_seconds = 60
[evaluation]
where = "both"
source = "{data}"
share = 0.3
rows = 5
metrics = ["json_equality", "rouge_l"]
max_new_tokens = 32
best_by = "nodes.rouge_l"
{broker}"""
NODE = """\
node = "{name}"
run = "replies"
model_folder = "{model}"
memory_budget = "{budget}"
folder = "{folder}"
threads = 1
compute_dtype = "float32"
{serve}
[data]
source = "{data}"
{broker}"""


class Fleet:
    """Two nodes of one run: one takes turns with its server, the other has set a share aside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = LocalBroker(folder / "broker", ["coordinator", *NODES], kind="mosquitto")
        model = write_tiny_chat(folder / "tiny")
        rows = [
            {"prompt": f"lamp {number}", "completion": json.dumps({"name": "on", "area": str(number)})}
            for number in range(12)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words: dict[str, Any] = {"model": model, "data": folder / "rows.jsonl"}
        job = JOB.format(rounds=ROUNDS, broker=self._broker("coordinator"), **words)
        (folder / "job.toml").write_text(job)
        for name, serve in NODES.items():
            node = NODE.format(
                name=name,
                budget=f"{BUDGET_BYTES // 2**20} MiB",
                folder=folder / name,
                serve=serve,
                broker=self._broker(name),
                **words,
            )
            (folder / f"{name}.toml").write_text(node)
        self.log = (folder / "log").open("wb")
        self.processes: list[subprocess.Popen[bytes]] = []

    def _broker(self, user: str) -> str:
        word = self.folder / f"{user}.password"
        word.touch(mode=0o600)
        word.write_text(self.broker.passwords[user])
        return (
            f'[broker]\nurl = "mqtt://127.0.0.1:{self.broker.port}"\ninsecure = true\n'
            f'username = "{user}"\npassword_file = "{word}"\n'
        )

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        self.processes.append(subprocess.Popen(program(*arguments), stdout=self.log, stderr=self.log))
        return self.processes[-1]

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.log.close()
        self.broker.stop()


def workers(pid: int) -> list[psutil.Process]:
    try:
        found = psutil.Process(pid).children()
        return [child for child in found if child.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)]
    except psutil.NoSuchProcess:
        return []


def highest_bytes(pid: int) -> int:
    """A process' largest resident size until now, as the kernel keeps it: libraries that others map too count in full."""
    try:
        said = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", said, re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


class Meter(threading.Thread):
    """Looks at every node's processes from the first answer to the last, and keeps the worst.

    What a node uses at a moment is bounded by the largest sizes so far of the processes that are there then: a peak
    between two looks is not missed, but for the last moments of a process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pids: dict[str, dict[str, int]] = {name: {} for name in NODES}
        self.peaks: dict[str, dict[str, int]] = {name: {} for name in NODES}
        """By node and what had a worker: `training`, `serving`, `training and serving`."""
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            for name, pids in self.pids.items():
                first, again = ({role: workers(pid) for role, pid in list(pids.items())} for _ in range(2))
                # Those that were there before and after were there in between, at one moment.
                found = {role: [one for one in first[role] if one in again.get(role, [])] for role in first}
                together = sum(
                    map(highest_bytes, [*pids.values(), *(one.pid for ones in found.values() for one in ones)])
                )
                state = " and ".join(role for role, ones in found.items() if ones) or "neither"
                self.peaks[name][state] = max(together, self.peaks[name].get(state, 0))

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.join()

    def __enter__(self) -> Meter:
        self.start()
        return self


@pytest.mark.slow
def test_two_nodes_train_and_serve_within_their_budgets(tmp_path: Path) -> None:
    needs_mosquitto()
    fleet = Fleet(tmp_path)
    with ExitStack() as stack:
        stack.callback(fleet.close)
        meter = stack.enter_context(Meter())
        servers: dict[str, Served] = {}
        for name in NODES:
            (tmp_path / f"serve-{name}").mkdir()
            servers[name] = stack.enter_context(served(tmp_path / f"serve-{name}", tmp_path / f"{name}.toml"))
            meter.pids[name]["serving"] = servers[name].process.pid
            # Nothing was trained yet: the model as it lies in its folder answers, and says so.
            assert servers[name].post(CHAT, chat(max_tokens=2)).status == 200
            assert "nothing learned" in servers[name].get("/health").json["note"]
        _train(fleet, servers, meter)
        final = _check_measured(tmp_path / "replies")
        for name, server in servers.items():
            # The agent stays with a warm worker: of the node that takes turns it is let go when somebody asks.
            answer = server.post(CHAT, chat("lamp 3", max_tokens=4, model="replies"))
            assert answer.status == 200, (name, answer.body, fleet.said[-3000:])
            assert answer.json["system_fingerprint"] == f"v{ROUNDS}-{final[:12]}"
            (model,) = server.get("/v1/models").json["data"]
            assert (model["run"], model["node"], model["version"], model["digest"]) == ("replies", name, ROUNDS, final)
        # The rows have `name` first: so has the answer, whatever the schema's order is.
        schema = {
            "type": "object",
            "properties": {"area": {"enum": ["1", "2"]}, "name": {"enum": ["on", "off"]}},
            "required": ["area", "name"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        text = servers["turns"].post(CHAT, chat("lamp 3", max_tokens=80, response_format=form)).text
        assert list(json.loads(text)) == ["name", "area"]
    _within_budgets(meter.peaks)


def _check_measured(run: Path) -> str:
    """Published states were measured by answers, here and on both nodes; gives the last digest."""
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["rounds"]) == ROUNDS
    # Of the last state a node may say nothing in time: its server may have the memory.
    for row in summary["rounds"][: ROUNDS - 1]:
        assert row["metrics"].keys() == {"token_accuracy", "perplexity", "json_equality", "rouge_l"}
        on_nodes = row["on_nodes"]
        assert on_nodes["scores"].keys() == NODES.keys() and 2 <= on_nodes["rows"] <= 10
        for found in (row["metrics"], on_nodes["metrics"], *(one["metrics"] for one in on_nodes["scores"].values())):
            assert 0 <= found["json_equality"] <= 1 and 0 <= found["rouge_l"] <= 1
        assert on_nodes["loss"] < summary["start_on_nodes"]["loss"]
    assert summary["best"]["by"] == "nodes.rouge_l" and "rouge_l" in (run / "report.html").read_text()
    digest: str = summary["final"]["digest"]
    return digest


def _within_budgets(peaks: dict[str, dict[str, int]]) -> None:
    """In every state that a node can be in, and all of them were seen."""
    for name, states in peaks.items():
        for state, peak_bytes in sorted(states.items()):
            print(f"{name}: {state}: {peak_bytes / 1e6:,.0f} of {BUDGET_BYTES / 1e6:,.0f} MB")
    assert peaks["turns"].keys() >= {"training", "serving"}
    assert "training and serving" not in peaks["turns"]
    assert peaks["both"].keys() >= {"serving", "training and serving"}
    assert max(max(states.values()) for states in peaks.values()) <= BUDGET_BYTES, peaks


def _train(fleet: Fleet, servers: dict[str, Served], meter: Meter) -> None:
    """Run to the end, asking all the while."""
    leader = fleet.start("coordinator", "run", fleet.folder / "job.toml", "--runs", fleet.folder)
    agents = {name: fleet.start("client", "run", fleet.folder / f"{name}.toml", "--stay") for name in NODES}
    for name, process in agents.items():
        meter.pids[name] = {"training": process.pid, **meter.pids[name]}
    refused, versions = 0, set[int]()
    patience = Patience(lambda: [leader, *agents.values()], lambda: fleet.said)
    while leader.poll() is None:
        patience.check()
        asked = servers["turns"].post(CHAT, chat(max_tokens=2))
        if asked.status == 503:
            refused += 1
            assert int(asked.headers["retry-after"]) > 0
            assert "trains now" in asked.json["error"]["message"]
        # A share of its own: this one always answers, from whatever is published last.
        answer = servers["both"].post(CHAT, chat(max_tokens=2))
        assert answer.status == 200, (answer.body, fleet.said[-3000:])
        versions.add(servers["both"].get("/health").json["version"])
        time.sleep(0.2)
    assert leader.returncode == 0, fleet.said[-3000:]
    assert refused > 0 and len(versions) > 1, (refused, versions)
    until(lambda: all(server.get("/health").json["version"] == ROUNDS for server in servers.values()), agents.values())
