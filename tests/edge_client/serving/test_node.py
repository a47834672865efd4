# SPDX-License-Identifier: Apache-2.0
"""Nodes that train and serve: real broker, coordinator, agents, servers and workers; the budget is one, and what is
published is what answers."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
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
                process.wait(60)
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


def used_bytes(pids: list[int]) -> int:
    """Proportional set sizes of processes and their workers."""
    total = 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            total += sum(one.memory_full_info().pss for one in (process, *process.children()))
        except psutil.Error:
            continue
    return total


def test_two_nodes_train_and_serve_within_their_budgets(tmp_path: Path) -> None:
    needs_mosquitto()
    fleet = Fleet(tmp_path)
    with ExitStack() as stack:
        stack.callback(fleet.close)
        servers: dict[str, Served] = {}
        for name in NODES:
            (tmp_path / f"serve-{name}").mkdir()
            servers[name] = stack.enter_context(served(tmp_path / f"serve-{name}", tmp_path / f"{name}.toml"))
            # Nothing was trained yet: the model as it lies in its folder answers, and says so.
            assert servers[name].post(CHAT, chat(max_tokens=2)).status == 200
            assert "nothing learned" in servers[name].get("/health").json["note"]
        _train(fleet, servers)
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


def _train(fleet: Fleet, servers: dict[str, Served]) -> None:
    """Run to the end, asking all the while."""
    leader = fleet.start("coordinator", "run", fleet.folder / "job.toml", "--runs", fleet.folder)
    agents = {name: fleet.start("client", "run", fleet.folder / f"{name}.toml", "--stay") for name in NODES}
    refused, versions = 0, set[int]()
    patience = Patience(lambda: [leader, *agents.values()], lambda: fleet.said)
    while leader.poll() is None:
        patience.check()
        agent, server = agents["turns"], servers["turns"]
        before = {worker.pid for worker in workers(server.process.pid)}
        if workers(agent.pid):
            # Those that were there before and after were there in between.
            assert not before & {worker.pid for worker in workers(server.process.pid)}, fleet.said[-3000:]
        for name in NODES:
            assert used_bytes([agents[name].pid, servers[name].process.pid]) <= BUDGET_BYTES
        asked = server.post(CHAT, chat(max_tokens=2))
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
