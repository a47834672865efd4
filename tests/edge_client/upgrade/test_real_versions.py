# SPDX-License-Identifier: Apache-2.0
"""Real versions: wheels, environments, agents as processes, a server that names a share of the fleet, a broker with
certificates. A version that cannot start is left again by itself."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import needs_mosquitto

from edge_client.owner.accepting import RELEASE_FILE
from fedcore.wire.fleet import Release
from tests.edge_client.upgrade.wheels import built, other_version, sha256
from tests.fleet.place import Place
from tests.patience import until

ROOT = Path(__file__).resolve().parents[3]
# As a wheel may be that was built in a hurry: it is installed, and its agent ends at once.
BROKEN = 'raise RuntimeError("not today")\n'


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    first = built(ROOT, tmp_path_factory.mktemp("wheels"))
    good = other_version(first, "0.3.0")
    return {
        "base": first,
        "0.3.0": good,
        "0.4.0": other_version(first, "0.4.0", {"edge_client/fleet/client.py": BROKEN}),
    }


@pytest.fixture(scope="module")
def base(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as one that is installed by hand; packages are those of the tests."""
    made = tmp_path_factory.mktemp("opt") / "fedkrso"
    subprocess.run([sys.executable, "-m", "venv", made], check=True, timeout=300)
    pip: list[str | Path] = [
        made / "bin/python",
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheels["base"],
    ]
    subprocess.run(pip, check=True, timeout=300)
    site = next((made / "lib").glob("python*")) / "site-packages"
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def manage(word: str, folder: Path) -> int:
    """The service manager, as a program of its own."""
    command = [sys.executable, str(Path(__file__).with_name("manager.py")), word, str(folder)]
    return subprocess.run(command, timeout=600, check=False).returncode


class Node:
    """A node with versions of its own."""

    def __init__(self, name: str, folder: Path, place: Place, base: Path, wheels: Path) -> None:
        self.name, self.folder, self._base, self._wheels = name, folder, base, wheels
        folder.mkdir()
        (folder / "base").write_text(str(base / "bin/fedkrso"))
        (folder / "mine.csv").write_text("text,label\nwell,a\n")
        (folder / "node.toml").write_text(
            f"""
node = "{name}"
fleet = "homes"
folder = "{folder / "state"}"
memory_budget = "512 MiB"
[models]
light = "{place.model}"
[data]
source = "{folder / "mine.csv"}"
[accept]
releases = true
{place.broker.sections(name)}"""
        )
        slots = folder / "slots"
        slots.mkdir()
        (slots / "current").symlink_to(base)

    @property
    def version(self) -> str:
        """Of the program that the link leads to."""
        ask = "import importlib.metadata; print(importlib.metadata.version('fedkrso'))"
        return subprocess.check_output([self.folder / "slots/current/bin/python", "-I", "-c", ask], text=True).strip()

    def obey(self, *more: str) -> subprocess.CompletedProcess[str]:
        """What systemd's unit would call once the agent has kept a notice."""
        manager = f"{shlex.quote(sys.executable)} {Path(__file__).with_name('manager.py')}"
        command: list[object] = [
            self._base / "bin/fedkrso",
            "client",
            "upgrade",
            "--wanted",
            "--node",
            self.folder / "node.toml",
        ]
        command += ["--slots", self.folder / "slots", "--find-links", self._wheels, "--probation", "2", *more]
        command += ["--restart", f"{manager} restart {self.folder}", "--alive", f"{manager} alive {self.folder}"]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=600, env=environment, check=False
        )

    def wanted(self) -> bytes:
        path = self.folder / "state" / RELEASE_FILE
        return path.read_bytes() if path.exists() else b""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    needs_mosquitto()
    (tmp_path / "place").mkdir()
    made = Place(tmp_path / "place", ("kitchen", "garden"))
    yield made
    made.close()


def released(place: Place, wheel: Path, share: float, before: str) -> None:
    """Have the server name a version, beside what its file says before."""
    file = place.folder / "server.toml"
    version = wheel.name.split("-")[1]
    file.write_text(f'{before}\n[release]\nversion = "{version}"\nsha256 = "{sha256(wheel)}"\nshare = {share}\n')
    if place.server is not None:
        place.kill()
    place.serve()


def said(place: Place) -> dict[str, dict[str, Any]]:
    return {row["node"]: row for row in place.ask("/api/nodes")["nodes"]}


@pytest.mark.slow
def test_a_share_of_the_fleet_gets_a_version_and_a_broken_one_is_left(
    tmp_path: Path, place: Place, base: Path, wheels: dict[str, Path]
) -> None:
    folder = wheels["base"].parent
    nodes = {name: Node(name, tmp_path / name, place, base, folder) for name in ("kitchen", "garden")}
    # The smallest share that has one of these two in it.
    good = Release(version="0.3.0", sha256=sha256(wheels["0.3.0"]), permille=0)
    share = next(
        p for p in range(1, 1001) if any(Release(version="0", sha256=good.sha256, permille=p).names(n) for n in nodes)
    )
    [first] = [name for name in nodes if Release(version="0", sha256=good.sha256, permille=share).names(name)]
    [other] = nodes.keys() - {first}
    before = (place.folder / "server.toml").read_text()
    try:
        released(place, wheels["0.3.0"], share / 1000, before)
        for node in nodes.values():
            assert manage("restart", node.folder) == 0, (node.folder / "log").read_text()
        until(lambda: nodes[first].wanted(), [])
        until(lambda: said(place).keys() == nodes.keys(), [])
        old = said(place)[first]["software"]
        assert (said(place)[first]["release"], said(place)[other]["release"]) == ("0.3.0", "")
        # The one that is named, and not the other.
        done = nodes[other].obey()
        assert done.returncode == 0 and "nothing else is wanted here" in done.stdout, done.stderr
        done = nodes[first].obey()
        assert done.returncode == 0 and "0.3.0 runs, and has reported" in done.stdout, done.stdout + done.stderr
        until(lambda: said(place)[first]["software"] == "0.3.0" and said(place)[first]["online"], [])
        assert said(place)[other]["software"] == old and nodes[other].version == old
        assert f"{old}" in place.say("nodes") and "0.3.0" in place.say("nodes")
        # All of them.
        released(place, wheels["0.3.0"], 1.0, before)
        until(lambda: nodes[other].wanted(), [])
        assert nodes[other].obey().returncode == 0 and nodes[other].version == "0.3.0"
        # A version that cannot start: back, and known from then on.
        noticed = nodes[first].wanted()
        released(place, wheels["0.4.0"], 1.0, before)
        until(lambda: nodes[first].wanted() != noticed, [])
        done = nodes[first].obey()
        assert done.returncode != 0 and "0.4.0 did not report, 0.3.0 runs again" in done.stderr, (
            done.stdout + done.stderr
        )
        assert "not today" in (nodes[first].folder / "log").read_text() and nodes[first].version == "0.3.0"
        until(lambda: said(place)[first]["software"] == "0.3.0" and said(place)[first]["online"], [])
        assert said(place)[first]["release"] == "0.4.0" and manage("alive", nodes[first].folder) == 0
        assert "did not report here before" in nodes[first].obey().stderr
        # A wheel with another hash is not installed, and nothing is stopped.
        pid = (nodes[other].folder / "pid").read_text()
        wheels["0.4.0"].write_bytes(wheels["0.4.0"].read_bytes() + b"\0")
        until(lambda: nodes[other].wanted() != noticed, [])
        done = nodes[other].obey()
        assert done.returncode != 0 and "HASH" in done.stderr.upper(), done.stderr
        assert (nodes[other].folder / "pid").read_text() == pid and manage("alive", nodes[other].folder) == 0
    finally:
        for node in nodes.values():
            manage("stop", node.folder)
