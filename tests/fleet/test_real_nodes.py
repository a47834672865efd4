# SPDX-License-Identifier: Apache-2.0
"""Two nodes of a fleet with real workers and data: they train a run of a tiny model as `fedkrso client run` does, wait,
and train the next one; a run that their data cannot serve is declined with the line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from forked_workers import ForkedWorkers
from workshop import LABELS, Workshop, program

from fedcore.system.locks import owner_pid
from tests.fleet.place import Place

HOMES = ("home-0", "home-1")


def node_file(place: Place, workshop: Workshop, index: int) -> Path:
    path = place.folder / f"home-{index}.toml"
    path.write_text(
        f'node = "home-{index}"\nfleet = "homes"\nfolder = "{place.folder / f"home-{index}"}"\n'
        'memory_budget = "1 GiB"\nthreads = 1\ncompute_dtype = "float32"\nmicro_batch_size = 4\n'
        f'checkpointing = false\nmapped_weights = false\n[models]\nmodel = "{workshop.model}"\n'
        f'[data]\nsource = "{workshop.texts(index)}"\n{place.broker.sections(f"home-{index}")}'
    )
    return path


@pytest.mark.slow
def test_nodes_train_one_run_after_the_other_and_decline_what_their_data_cannot_serve(
    tmp_path: Path, forked_workers: ForkedWorkers
) -> None:
    needs_mosquitto()
    workshop = Workshop(tmp_path / "shared", forked_workers)
    place = Place(tmp_path, HOMES)
    place.model, place.schema = workshop.model, workshop.schema
    homes = []
    try:
        place.serve()
        for index in range(len(HOMES)):
            command = program("client", "run", node_file(place, workshop, index))
            homes.append(
                subprocess.Popen(command, stdout=place.log, stderr=place.log, env=workshop.environment)
            )  # fmt: skip
        foreign = place.job("foreign")
        foreign.write_text(foreign.read_text().replace(json.dumps(LABELS), '["up", "down"]'))
        schema = tmp_path / "foreign.json"
        schema.write_text(workshop.schema.read_text().replace('"left","right"', '"up","down"'))
        foreign.write_text(foreign.read_text().replace(str(workshop.schema), str(schema)))
        steps = "rank = 8\ninterval_steps = 2\nsteps = 4\nbatch_size = 4\n"
        for job in (foreign, place.job("first"), place.job("second")):
            job.write_text(job.read_text().replace("rank = 4\n", steps).replace("[head]", "max_length = 16\n[head]"))
            place.say("submit", job)
        place.until(lambda: place.rows()["second"]["state"] == "finished")
        assert place.rows()["first"]["state"] == "finished" and place.rows()["foreign"]["rounds_done"] == 0
        for run in ("first", "second"):
            summary = json.loads((place.runs / run / "summary.json").read_text())
            assert set(summary["nodes"]) == set(HOMES)
            for node in summary["nodes"].values():
                assert node["digest"] == summary["final"]["digest"]
                assert 0 < node["agent_peak_rss_bytes"] <= 40_000_000, node["agent_peak_rss_bytes"] / 1e6
        declined = {row["node"]: row["declined"] for row in place.ask("/api/nodes")["nodes"]}
        assert all("label" in declined[home]["foreign"] for home in HOMES), declined
        # What a finished run needed is gone from the nodes' disks.
        place.until(lambda: not [*tmp_path.glob("home-*/runs/*")])
        for name in HOMES:
            pid = owner_pid(tmp_path / name)
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
        place.until(lambda: all(process.poll() is not None for process in homes))
        assert [process.returncode for process in homes] == [0, 0]
        place.until(lambda: not any(row["online"] for row in place.ask("/api/nodes")["nodes"]))
    finally:
        for process in homes:
            process.kill()
            process.wait()
        place.close()
