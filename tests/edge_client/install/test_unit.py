# SPDX-License-Identifier: Apache-2.0
"""The generated unit, before the real systemd's own judges."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.install.layout import Layout, system_layout, user_layout
from edge_client.install.unit import Service, is_hidden, reading, slice_text, unit_text

READS = (Path("/home/ann/my data.csv"), Path("/srv/100%/model"))
LAYOUTS = {"system": system_layout(), "user": user_layout({}, Path("/home/ann"))}
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")


def unit(layout: Layout, *, budget_bytes: int = 2**31, reads: tuple[Path, ...] = READS, systemd: int = 252) -> str:
    command = (sys.executable, "client", "run", str(layout.node_file), "--stay")
    return unit_text(layout, Service(command, budget_bytes, reads), systemd)


def analyze(tmp_path: Path, text: str, scope: str, *verb: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "fedkrso-client.service"
    path.write_text(text)
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = ["systemd-analyze", f"--{scope}", *verb, str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@needs_analyze
@pytest.mark.parametrize("scope", LAYOUTS)
def test_systemd_finds_nothing_to_complain_of(tmp_path: Path, scope: str) -> None:
    done = analyze(tmp_path, unit(LAYOUTS[scope]), scope, "verify", "--recursive-errors=no")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_analyze
@pytest.mark.parametrize("scope", LAYOUTS)
def test_systemd_finds_nothing_to_complain_of_in_a_server_and_its_slice(tmp_path: Path, scope: str) -> None:
    layout = LAYOUTS[scope]
    (tmp_path / "fedkrso.slice").write_text(slice_text(layout, 2**31))
    command = (sys.executable, "client", "serve", str(layout.node_file))
    server = unit_text(layout, Service(command, 2**31, READS, "server", shared=True), 252)
    done = analyze(tmp_path, server, scope, "verify", "--recursive-errors=no")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_analyze
def test_systemd_would_find_a_key_that_it_does_not_know(tmp_path: Path) -> None:
    text = unit(LAYOUTS["system"]).replace("WatchdogSec=", "WatchdgoSec=")
    assert "WatchdgoSec" in analyze(tmp_path, text, "system", "verify", "--recursive-errors=no").stderr


@needs_analyze
def test_the_service_of_a_device_is_little_exposed(tmp_path: Path) -> None:
    done = analyze(tmp_path, unit(LAYOUTS["system"]), "system", "security", "--offline=true", "--no-pager")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd does not judge files that are not installed: {done.stderr.strip()}")
    assert float(found.group(1)) <= 2.5


def test_what_breaks_the_work_is_not_in_it() -> None:
    for layout in LAYOUTS.values():
        keys = {line.partition("=")[0] for line in unit(layout, systemd=260).splitlines()}
        assert not keys & {
            "PrivateDevices",
            "ProtectClock",
            "DevicePolicy",
            "ProcSubset",
            "MemoryDenyWriteExecute",
            "ProtectControlGroups",
        }


@pytest.mark.parametrize("scope", LAYOUTS)
def test_new_keys_are_for_new_systemds(scope: str) -> None:
    old, new = (set(unit(LAYOUTS[scope], systemd=version).splitlines()) for version in (249, 255))
    assert new - old == {"DelegateSubgroup=agent", "RestartSteps=8", "RestartMaxDelaySec=600"} and old < new


def test_memory_follows_the_budget_and_leaves_room_to_refuse_a_small_one() -> None:
    lines = unit(system_layout(), budget_bytes=2000 * 2**20).splitlines()
    assert (
        "MemoryHigh=2000M" in lines
        and "MemoryMax=2100M" in lines
        and "Delegate=memory" in lines
        and "OOMPolicy=continue" in lines
    )
    assert "MemoryHigh=576M" in unit(system_layout(), budget_bytes=256 * 2**20).splitlines()


def test_paths_are_quoted_and_only_hidden_ones_are_bound() -> None:
    lines = unit(system_layout()).splitlines()
    assert [line for line in lines if line.startswith("Bind")] == ['BindReadOnlyPaths=-"/home/ann/my data.csv"']
    assert 'RequiresMountsFor="/home/ann/my data.csv"' in lines and "RequiresMountsFor=/srv/100%%/model" in lines


def test_a_path_within_another_is_not_bound_again() -> None:
    assert reading([Path("/srv/a/b"), Path("/srv/a"), Path("/srv/a"), Path("/srv/ab")]) == (
        Path("/srv/a"),
        Path("/srv/ab"),
    )
    assert is_hidden(Path("/tmp/x")) and is_hidden(Path("/root")) and not is_hidden(Path("/homes/x"))


def test_a_user_s_layout_follows_the_base_directories() -> None:
    layout = user_layout({"XDG_CONFIG_HOME": "/data/config", "XDG_STATE_HOME": "relative"}, Path("/home/ann"))
    assert layout.unit == Path("/data/config/systemd/user/fedkrso-client.service")
    assert layout.state == Path("/home/ann/.local/state/fedkrso") and layout.node_file == Path(
        "/data/config/fedkrso/node.toml"
    )
