# SPDX-License-Identifier: Apache-2.0
"""Made-up machines for the doctor, and how a check's finding is compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from devices.base import Accelerator, Facts
from devices.kinds.simulated import Simulated, Step
from edge_client.doctor.base import Check, Surroundings
from edge_client.node import Node
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.device.readings import Readings

NOW = 1_790_000_000.0


NOTHING = Readings()


LINUX = Facts("linux", "some board", system="Debian GNU/Linux 12", machine="x86_64")


JETSON = Facts(
    "jetson",
    "NVIDIA Jetson Orin Nano",
    system="L4T 36.4.3 (JetPack 6.2)",
    machine="aarch64",
    accelerator=Accelerator("Orin", True, (8, 7)),
)


def node(**changes: Any) -> Node:
    return msgspec.structs.replace(
        Node(
            node="n",
            run="r",
            model_folder="m",
            data=DataSection(source="x.csv"),
            broker=BrokerSection(url="mqtts://localhost:1"),
        ),
        **changes,
    )


def surroundings(root: Path, readings: Readings = NOTHING, facts: Facts = LINUX, **changes: Any) -> Surroundings:
    made = Simulated((Step(0.0, readings),), facts)
    given = {
        "run": lambda command, seconds: None,
        "environment": {"PATH": os.environ["PATH"], "HOME": str(root)},
        "clock": lambda: NOW,
    }
    return Surroundings(made, root=root, **{**given, "quick": True, **changes})


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def by_name(checks: Sequence[Check]) -> dict[str, Check]:
    return {check.check: check for check in checks}


def expect(checks: Sequence[Check], name: str, state: str, found: str = "", remedy: str = "") -> None:
    check = by_name(checks)[name]
    assert check.state == state and found in check.found and remedy in check.remedy, check
    assert state == "ok" or check.remedy, "a finding without a remedy"
