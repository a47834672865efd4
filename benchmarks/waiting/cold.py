# SPDX-License-Identifier: Apache-2.0
"""A node's cold start: from `fedkrso client run` to the end of its first training step.

    python -m benchmarks.waiting.cold FOLDER [--task text-classification] [--times 3]

A real broker and coordinator wait with an open round of one step of 16 rows; then a node begins that has nothing: no
trace remembered, no int8 file, no compiled code. `first` is that; `later` is the same node when it starts again, with
what it kept. Seconds are the clock's until the event, and the processor's of agent and worker for the whole visit (one
step, the upload, the published state). FOLDER is a model's folder; the route is not probed (float32 on the CPU)."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from coordinator.provisioning.broker import LocalBroker

_COMMAND = (sys.executable, "-c", "from fedcore.command import main; main()")
_EVENTS = ("memory_plan", "loaded", "trained")
_JOB = """\
run = "{run}"
[model]
folder = "{model}"
[task]
kind = "{kind}"
max_length = 64
{labels}
[method]
name = "fedkrso"
steps = 1
interval_steps = 1
batch_size = 16
[round]
rounds = 1
min_nodes = 1
quorum = 1
deadline_seconds = 900
[broker]
url = "{url}"
insecure = true
username = "coordinator"
password = "{coordinator}"
"""
_NODE = """\
node = "n"
run = "{run}"
model_folder = "{model}"
memory_budget = "4GiB"
folder = "{folder}"
torch_device = "cpu"
compute_dtype = "float32"
[data]
source = "{data}"
{label}
[broker]
url = "{url}"
insecure = true
username = "n"
password = "{node}"
"""


def start(folder: Path, broker: LocalBroker, model: Path, kind: str, run: str) -> dict[str, float]:
    """One visit of the node in a run of its own; what it keeps lies in `folder`.

    Returns:
        Seconds from its start to each event, and `processor`, those of agent and worker in all.
    """
    classifies = kind == "text-classification"
    rows = [{"text": f"row {n} of a small file of texts, read twice"} for n in range(64)]
    if classifies:
        rows = [{**row, "label": "ab"[n % 2]} for n, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = {"run": run, "model": model, "kind": kind, "url": broker.url, "folder": folder / "node"}
    values |= {"data": folder / "rows.jsonl", "labels": 'labels = ["a", "b"]' if classifies else ""}
    values |= {"label": 'label = "label"' if classifies else "", **broker.passwords, "node": broker.passwords["n"]}
    (folder / "job.toml").write_text(_JOB.format(**values), encoding="utf-8")
    (folder / "node.toml").write_text(_NODE.format(**values), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    coordinate = [*_COMMAND, "coordinator", "run", str(folder / "job.toml"), "--runs", str(folder / "runs")]
    with (folder / "coordinator.log").open("w") as log:
        coordinator = subprocess.Popen([*coordinate, "--json"], stdout=log, stderr=log, env=environment)
        try:
            _wait_for_round(folder, coordinator)
            return _visit(folder, environment)
        finally:
            coordinator.terminate()
            coordinator.wait()


def _wait_for_round(folder: Path, coordinator: subprocess.Popen[bytes]) -> None:
    """It is the coordinator's own start that is not to be measured."""
    log = folder / "coordinator.log"
    while '"security"' not in log.read_text(encoding="utf-8"):
        if coordinator.poll() is not None:
            raise SystemExit(log.read_text(encoding="utf-8"))
        time.sleep(0.1)
    time.sleep(1)


def _visit(folder: Path, environment: dict[str, str]) -> dict[str, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    node = subprocess.Popen(
        [*_COMMAND, "client", "run", str(folder / "node.toml"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    found: dict[str, float] = {}
    said: list[str] = []
    assert node.stdout is not None
    for line in node.stdout:
        said.append(line)
        event = json.loads(line).get("event") if line.startswith("{") else None
        if event in _EVENTS:
            found.setdefault(event, time.monotonic() - began)
    node.wait()
    if set(found) != set(_EVENTS):
        raise SystemExit("".join(said[-5:]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["processor"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--task", "kind", default="text-classification", show_default=True)
@click.option("--times", default=3, show_default=True)
def main(model: Path, kind: str, times: int) -> None:
    """Print a table: medians."""
    columns = (*_EVENTS, "processor")
    found: dict[str, list[dict[str, float]]] = {"first": [], "later": []}
    for turn in range(times):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            with LocalBroker(folder / "broker", ["coordinator", "n"]) as broker:
                for number, name in enumerate(found):
                    found[name].append(start(folder, broker, model.resolve(), kind, f"cold-{turn}-{number}"))
    click.echo(f"| seconds to | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, rows in found.items():
        middle = [f"{statistics.median(row[column] for row in rows):.1f}" for column in columns]
        click.echo(f"| {name} | {' | '.join(middle)} |")


if __name__ == "__main__":
    main()
