# SPDX-License-Identifier: Apache-2.0
"""Versions of the agent under a real systemd: to another, back from one that cannot start, and back by itself when the
command that tried it was killed."""

from __future__ import annotations

import json
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from cluster import Cluster

from tests.edge_client.install.booted import BootedDevice, needs_booting
from tests.edge_client.upgrade.wheels import built, other_version, sha256
from tests.patience import until

pytestmark = [pytest.mark.chaos, needs_booting]
ROOT = Path(__file__).resolve().parents[3]
BASE, SLOTS = Path("/opt/fedkrso"), Path("/opt/fedkrso-slots")
BROKEN = 'raise RuntimeError("not today")\n'


def test_versions_come_and_go_as_systemd_says(
    device: BootedDevice, cluster: Cluster, minilm_folder: Path, tmp_path: Path
) -> None:
    (wheels := tmp_path / "wheels").mkdir()
    first = built(ROOT, wheels)
    broken = {"edge_client/agent/agent.py": BROKEN}
    made = {"0.3.0": other_version(first, "0.3.0")}
    made |= {version: other_version(first, version, broken) for version in ("0.4.0", "0.5.0")}
    device.run(Path(sys.base_prefix) / "bin/python3", "-m", "venv", BASE)
    device.run(BASE / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", first)
    line = f"import sysconfig; open(sysconfig.get_path('purelib') + '/packages.pth', 'w').write({sysconfig.get_path('purelib')!r})"
    device.run(BASE / "bin/python", "-c", line)

    def upgrade(*words: object, check: bool = True) -> str:
        done = device.run(BASE / "bin/fedkrso", "client", "upgrade", *words, check=check)
        assert check or done.returncode != 0
        return done.stdout + done.stderr

    def version() -> str:
        # Of what runs, by the program that systemd started.
        pid = device.shown("MainPID")
        program = device.run("cat", f"/proc/{pid}/cmdline").stdout.split("\0")
        assert program[1] == f"{SLOTS}/current/bin/fedkrso", program
        return device.run(f"/proc/{pid}/root{SLOTS}/current/bin/fedkrso", "--version").stdout.split()[-1]

    assert cluster.broker.yard is not None
    (data := cluster.folder / "mine.csv").write_text("utterance,intent\nturn it on,on\n")
    kit = ["--from", cluster.broker.yard.client("home-0"), "--run", "t", "--model", minilm_folder, "--data", data]
    device.run(BASE / "bin/fedkrso", "client", "install", *kit, "--text", "utterance", "--label", "intent")
    assert "fedkrso-client.service.d/50-version.conf" in upgrade("--prepare")
    assert device.shown("ActiveState") == "active"
    device.run("systemctl", "restart", "fedkrso-client")
    assert version() == "0.2.0"
    assert device.run("systemctl", "is-enabled", "fedkrso-upgrade.path").stdout.strip() == "enabled"

    where = ("--find-links", wheels, "--probation", "2")
    assert "0.3.0 runs, and has reported" in upgrade("0.3.0", "--sha256", sha256(made["0.3.0"]), *where)
    assert version() == "0.3.0" and device.shown("ActiveState") == "active"
    assert "0.3.0" in upgrade() and "runs" in upgrade()

    said = upgrade("0.4.0", "--sha256", sha256(made["0.4.0"]), *where, check=False)
    assert "0.4.0 did not report, 0.3.0 runs again" in said
    assert version() == "0.3.0" and device.shown("ActiveState") == "active"

    # The command is killed as the trial begins: systemd starts what is chosen again and again, and counts.
    trial = (
        f"{BASE}/bin/fedkrso client upgrade 0.5.0 --sha256 {sha256(made['0.5.0'])} --find-links {wheels} & "
        f"while ! grep -q '\"trying\": {{' {SLOTS}/slots.json; do sleep 0.05; done; "
        f'while [ "$(readlink {SLOTS}/current)" = {SLOTS}/a ]; do sleep 0.05; done; kill -9 $!'
    )
    device.run("sh", "-c", trial)
    device.run("systemctl", "restart", "--no-block", "fedkrso-client")

    def settled() -> bool:
        kept = json.loads(device.run("cat", SLOTS / "slots.json").stdout)
        time.sleep(0.5)
        return kept["trying"] is None and device.shown("ActiveState") == "active"

    until(settled, [])
    assert version() == "0.3.0" and sha256(made["0.5.0"]) in device.run("cat", SLOTS / "slots.json").stdout
    assert "0.2.0 runs" in upgrade("--back") and version() == "0.2.0"
