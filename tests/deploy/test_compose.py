# SPDX-License-Identifier: Apache-2.0
"""`deploy/compose.yaml`: against the compose specification, and against the commands, build targets and files that it
names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import check_command

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def against_the_specification(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_it_is_what_the_specification_says(tmp_path: Path) -> None:
    done = against_the_specification(FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("mem_limit", "memory_limit", 1))
    assert against_the_specification(wrong).returncode == 1


def test_every_service_is_pinned_limited_and_nobody_special(services: dict[str, Any]) -> None:
    assert services.keys() == {"broker", "coordinator", "agent"}
    for name, service in services.items():
        assert re.search(r":\d+\.\d+\.\d+$", service["image"]), name
        assert (
            service["read_only"]
            and service["cap_drop"] == ["ALL"]
            and service["security_opt"] == ["no-new-privileges:true"]
        )
        assert service["mem_limit"] and service["pids_limit"] and service["restart"], name
        assert not service.get("privileged") and service.get("network_mode") is None
    assert services["broker"]["user"].split(":")[0] not in ("", "0", "root")
    for name in ("broker", "coordinator"):
        assert services[name]["healthcheck"]["test"][0] == "CMD-SHELL"
    for name in ("coordinator", "agent"):
        assert services[name]["depends_on"]["broker"]["condition"] == "service_healthy"
    assert services["agent"]["profiles"] == ["agent"]


def test_commands_are_commands_of_fedkrso(services: dict[str, Any]) -> None:
    [script] = services["coordinator"]["command"]
    lines = re.findall(r"exec (fedkrso [^;]*)", script)
    assert len(lines) == 2
    for line in (*lines, " ".join(["fedkrso", *services["agent"]["command"]])):
        check_command(line.replace('"$${RUN}"', "reviews"))
    subprocess.run(["sh", "-n", "-c", script.replace("$$", "$")], check=True, timeout=120)


def test_the_dockerfile_has_the_targets_and_every_package() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE) == [
        "wheel",
        "base",
        "coordinator",
        "agent",
        "agent-jetson",
    ]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "examples"}
    seen = {
        line[1:]
        for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set(re.findall(r"^COPY (\w+) \w+$", dockerfile, re.MULTILINE))
    assert packages == copied and packages <= seen
    for stage in ("coordinator", "agent", "agent-jetson"):
        text = dockerfile.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
        assert text.index("USER 10001") < text.index("ENTRYPOINT"), stage


def test_what_provision_is_told_in_the_head_fits_the_mounts(services: dict[str, Any]) -> None:
    head = " ".join(line.lstrip("# ") for line in FILE.read_text().splitlines() if line.startswith("#"))
    options = dict(re.findall(r"--(broker-folder|broker-data|broker-host) (\S+?)[;.]? ", head))
    mounts = {
        entry.split(":")[1]: entry for entry in services["broker"]["volumes"] for entry in [entry.replace(":-", "-")]
    }
    assert (
        options["broker-folder"] in mounts and options["broker-data"] in mounts and options["broker-host"] == "broker"
    )
    assert services["broker"]["command"][-1] == f"{options['broker-folder']}/mosquitto.conf"
