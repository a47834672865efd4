# SPDX-License-Identifier: Apache-2.0
"""A fleet's files: who gets which row, and what of the job and node files stays as it was."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.job import Job
from coordinator.provisioning.broker import LocalBroker
from edge_client.node import Node
from fedcore.config.reading import load_config
from fedcore.data.splits import parse_split
from fedcore.errors import ConfigError, DataError
from fedkrso.simulation import Simulation, Wishes

NODE = """\
node = "{name}"
run = "tiny"
model_folder = "models"
folder = "own"
memory_budget = "1 GiB"
[data]
source = "rows.csv"
[broker]
url = "mqtt://127.0.0.1:9"
insecure = true
"""


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with LocalBroker(tmp_path / "broker", ["coordinator", "node-1", "node-2", "a", "b"]) as made:
        yield made


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_held_out_or_at_exactly_one_node(
    tiny_job: Path, texts: Path, broker: LocalBroker, tmp_path: Path
) -> None:
    wishes = Wishes(data=str(texts), nodes=2, split=parse_split("dirichlet:0.5"), held_out=0.25, run="other", rounds=1)
    simulation = Simulation(tiny_job, wishes)
    folder = tmp_path / "out"
    folder.mkdir()
    job_file, files = simulation.write(folder, broker)
    parts = [rows_of(folder / f"{name}.jsonl") for name in ("held-out", "node-1", "node-2")]
    with texts.open() as file:
        given = [row["text"] for row in csv.DictReader(file)]
    assert sorted(row["text"] for part in parts for row in part) == sorted(given) and len(parts[0]) == 6
    assert [line.partition(":")[0] for line in simulation.about()] == ["held-out", "node-1", "node-2"]
    job = load_config(job_file, Job)
    assert (job.run, job.seed, job.round.rounds, job.round.min_nodes) == ("other", 5, 1, 2)
    assert job.evaluation is not None and job.evaluation.source == str(folder / "held-out.jsonl")
    assert job.broker.url == broker.url and "# Kept in the copy." in job_file.read_text()
    nodes = [load_config(path, Node) for path in files.values()]
    assert [node.node for node in nodes] == ["node-1", "node-2"] and {node.run for node in nodes} == {"other"}
    assert [node.broker.username for node in nodes] == ["node-1", "node-2"]
    assert all(node.memory_budget == "30%" and node.compute_dtype == "float32" for node in nodes)


def test_the_same_seed_deals_the_same_and_another_otherwise(tiny_job: Path, texts: Path) -> None:
    def about(seed: int | None) -> list[str]:
        wishes = Wishes(data=str(texts), nodes=3, split=parse_split("dirichlet:0.5"), seed=seed)
        return list(Simulation(tiny_job, wishes).about())

    assert about(None) == about(5) != about(6)


def test_a_job_needs_no_broker_of_its_own(tiny_job: Path, texts: Path) -> None:
    before, _, after = tiny_job.read_text().partition("[broker]")
    rest = after.partition("\n[")[2]
    tiny_job.write_text(before + (f"[{rest}" if rest else ""))
    assert "[broker]" not in tiny_job.read_text()
    assert Simulation(tiny_job, Wishes(data=str(texts), nodes=2)).names == ("node-1", "node-2")


def test_a_quorum_beyond_the_fleet_comes_down_to_it(
    tiny_job: Path, texts: Path, broker: LocalBroker, tmp_path: Path
) -> None:
    job_file, _ = Simulation(tiny_job, Wishes(data=str(texts), nodes=2)).write(tmp_path, broker)
    assert load_config(job_file, Job).round.quorum == 2


def test_a_split_by_a_column_keeps_its_groups_whole(tiny_job: Path, broker: LocalBroker, tmp_path: Path) -> None:
    data = tmp_path / "talk.jsonl"
    talk = [{"who": "abcd"[index % 4], "say": f"word{index}", "label": "left"} for index in range(40)]
    data.write_text("\n".join(map(json.dumps, talk)))
    wishes = Wishes(data=str(data), nodes=2, split=parse_split("by:who"), columns={"text": "say"})
    folder = tmp_path / "out"
    folder.mkdir()
    _, files = Simulation(tiny_job, wishes).write(folder, broker)
    owners = [{row["who"] for row in rows_of(folder / f"{name}.jsonl")} for name in files]
    assert owners[0] | owners[1] == set("abcd") and not owners[0] & owners[1]
    assert load_config(files["node-1"], Node).data.text == "say"
    with pytest.raises(ConfigError, match="no column 'speaker'"):
        Simulation(tiny_job, Wishes(data=str(data), nodes=2, split=parse_split("by:speaker"), columns={"text": "say"}))


def test_wrong_rows_are_told_with_their_line(tiny_job: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\nword1,left\nword2,middle\n")
    with pytest.raises(DataError, match=r"rows\.csv:3.*label 'middle'"):
        Simulation(tiny_job, Wishes(data=str(data)))
    with pytest.raises(DataError, match="no such file"):
        Simulation(tiny_job, Wishes(data=str(tmp_path / "nowhere.csv")))


def test_node_files_beside_the_job_keep_all_but_broker_and_folder(
    tiny_job: Path, broker: LocalBroker, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(NODE.format(name=name))
    (tmp_path / "other.toml").write_text(NODE.format(name="c").replace('"tiny"', '"another run"'))
    (tmp_path / "broken.toml").write_text("node = ")
    simulation = Simulation(tiny_job, Wishes(run="again", budget="300 MiB"))
    assert simulation.names == ("a", "b") and list(simulation.about()) == []
    folder = tmp_path / "out"
    folder.mkdir()
    job_file, files = simulation.write(folder, broker)
    node = load_config(files["b"], Node)
    assert (node.run, node.memory_budget, node.folder) == ("again", "300 MiB", str(folder / "b"))
    assert node.data.source == str(tmp_path / "rows.csv") and node.model_folder == str(tmp_path / "models")
    assert node.broker.url == broker.url and load_config(job_file, Job).evaluation is None
    (tmp_path / "twice.toml").write_text(NODE.format(name="a"))
    with pytest.raises(ConfigError, match="another file has node 'a' too"):
        Simulation(tiny_job, Wishes())


def test_no_node_files_and_wrong_names_are_refused(tiny_job: Path, texts: Path) -> None:
    with pytest.raises(ConfigError, match="no node files of run 'tiny'"):
        Simulation(tiny_job, Wishes())
    with pytest.raises(ConfigError, match="cannot be a run's name"):
        Simulation(tiny_job, Wishes(data=str(texts), run="a/b"))


def test_steps_come_from_the_data_where_the_job_names_none(
    tiny_job: Path, texts: Path, broker: LocalBroker, tmp_path: Path
) -> None:
    given = tiny_job.read_text()
    assert not any("method.steps" in line for line in Simulation(tiny_job, Wishes(data=str(texts), nodes=2)).about())
    tiny_job.write_text(
        given.replace("interval_steps = 2\nsteps = 4\n", "").replace("batch_size = 4", "batch_size = 1")
    )
    simulation = Simulation(tiny_job, Wishes(data=str(texts), nodes=2, held_out=0.1))
    (tmp_path / "out").mkdir()
    job = load_config(simulation.write(tmp_path / "out", broker)[0], Job)
    with texts.open() as file:
        rows = (sum(1 for _ in csv.DictReader(file)) - 1) / 2
    # Whole intervals of ten, two at least.
    assert job.method.steps == max(20, round(rows / 10) * 10)
    assert next(simulation.about()).startswith(f"method.steps = {job.method.steps}: about one pass")
