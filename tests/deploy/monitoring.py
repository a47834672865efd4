# SPDX-License-Identifier: Apache-2.0
"""What the dashboards and alerts of `deploy/monitoring` ask for, and what a run exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["ALERTS", "FLEET", "FOLDER", "RUN", "asked_labels", "asked_names", "exported", "expressions"]

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
RUN, FLEET, ALERTS = FOLDER / "run.json", FOLDER / "fleet.json", FOLDER / "alerts.yml"
_NAME = re.compile(r"fedkrso_[a-z_]+")


def expressions(path: Path) -> list[str]:
    """Every query of a dashboard, or of the alerts."""
    if path.suffix == ".yml":
        groups = yaml.safe_load(path.read_text())["groups"]
        return [rule["expr"] for group in groups for rule in group["rules"]]
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            found.extend(text for key, text in value.items() if key in ("expr", "definition"))
            for entry in value.values():
                look(entry)
        elif isinstance(value, list):
            for entry in value:
                look(entry)

    look(json.loads(path.read_text()))
    return found


def asked_names(paths: Iterable[Path]) -> set[str]:
    """Names of metrics in their queries."""
    return {name for path in paths for text in expressions(path) for name in _NAME.findall(text)}


def asked_labels(path: Path) -> set[tuple[str, str]]:
    """Each metric with a label that a query picks it by."""
    pairs = set()
    for text in expressions(path):
        for name, inside in re.findall(r"(fedkrso_[a-z_]+)\{([^}]*)\}", text):
            pairs |= {(name, label) for label in re.findall(r"(\w+)\s*(?:=~|!=|=)", inside)}
    return pairs


def exported(text: bytes) -> dict[str, set[str]]:
    """Names that there are, each with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
