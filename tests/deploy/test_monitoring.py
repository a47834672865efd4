# SPDX-License-Identifier: Apache-2.0
"""`deploy/monitoring/`: every metric and label that dashboards and alerts name is exported. A real run's are looked at
in `tests/test_run.py`."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from monitoring import ALERTS, FLEET, FOLDER, RUN, asked_labels, asked_names, exported, expressions

from coordinator.dashboard.metrics import exposition
from coordinator.server.metrics import server_exposition, targets
from coordinator.server.rows import NodeRow, RunRow
from tests.coordinator.dashboard.site import make_view

ROWS = [
    RunRow(run="a", state="running", by="x", submitted_at=0, since=0, words="", method="m", rounds=3, accuracy=0.5),
    RunRow(run="b", state="queued", by="x", submitted_at=0, since=0, words=""),
    RunRow(run="c", state="finished", by="x", submitted_at=0, since=0, words="", method="m"),
]
NODES = [NodeRow(node="n", online=True, run="a", able=("a",), declined={}, software="")]


@pytest.fixture(scope="module")
def there() -> dict[str, set[str]]:
    view = make_view()
    view.deadline_at, view.nodes["a"].available_bytes = 1.0, 5
    return exported(exposition(view)) | exported(server_exposition(ROWS, NODES))


@pytest.mark.parametrize("path", [RUN, FLEET, ALERTS], ids=lambda path: path.name)
def test_what_is_asked_for_is_exported(path: Path, there: dict[str, set[str]]) -> None:
    assert len(expressions(path)) >= 5
    assert asked_names([path]) - there.keys() == set()
    # An instance is Prometheus' own.
    for name, label in asked_labels(path):
        assert label in there[name] | {"instance"}, (name, label)
    legends = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", path.read_text())
    assert set(legends) <= {label for labels in there.values() for label in labels} | {"instance"}
    for text in expressions(path):
        assert all(text.count(a) == text.count(b) for a, b in ("()", "{}", "[]")), text


@pytest.mark.parametrize("path", [RUN, FLEET], ids=lambda path: path.name)
def test_panels_have_places_of_their_own(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels: list[dict[str, Any]] = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and all(panel["title"] for panel in panels)
    assert dashboard["uid"] and dashboard["schemaVersion"] >= 39
    variables = {entry["name"] for entry in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", path.read_text())) <= variables
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart and one["x"] + one["w"] <= 24, (one, other)


def test_the_documentations_alerts_are_the_files() -> None:
    text = (FOLDER.parents[1] / "docs" / "dashboard.md").read_text()
    block = next(found for found in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "alert:" in found)
    rules = {rule["alert"]: rule for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
    for rule in yaml.safe_load(block)["groups"][0]["rules"]:
        assert rules[rule["alert"]] == rule


def test_a_server_tells_where_each_run_is_that_goes_on() -> None:
    found = targets(ROWS, "h:1")
    assert [entry["labels"]["run"] for entry in found] == ["a"]
    text = (FOLDER / "prometheus.yml").read_text()
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    assert jobs["fedkrso-runs"]["http_sd_configs"][0]["url"].endswith("/api/targets")
    assert msgspec.json.encode(found)
    states = exported(server_exposition(ROWS, NODES))
    assert states["fedkrso_server_runs"] == {"state"} and states["fedkrso_server_run_accuracy_ratio"] == {"run"}
