# SPDX-License-Identifier: Apache-2.0
"""Which version runs after a change, a failure, a kill at any step, and a power cut during a trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from coordinator.server.settings import ReleaseSection
from edge_client.install.layout import system_layout, user_layout
from edge_client.install.machine import Called
from edge_client.install.steps import File
from edge_client.node import Node
from edge_client.owner.accepting import RELEASE_FILE
from edge_client.upgrade.changing import MOST_STARTS, Service, back, change, reported, settle
from edge_client.upgrade.service import prepared
from edge_client.upgrade.slots import Pinned, Slots
from edge_client.upgrade.wanted import wanted
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError, ForgedMessage, RunError, WireError
from fedcore.wire.fleet import FleetPost, Notice, Release
from fedcore.wire.identity import SigningKey

NEW, BROKEN = Pinned(version="0.3.0", sha256="a" * 64), Pinned(version="0.4.0", sha256="b" * 64)
SERVICE = Service(("restart",), ("alive",), 2.0)


class Killed(Exception):
    pass


class Device:
    """Programs of a device: pip puts a version's number into a slot, and what is started reports unless it is broken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0
        self.kill_at, self.dies_later = 0, False
        self.runs = ""
        base = folder / "base"
        (base / "bin").mkdir(parents=True)
        (base / "bin" / "python").write_text("0.2.0")

    def slots(self) -> Slots:
        return Slots(self.folder / "slots", self.folder / "base", self)

    def __call__(self, arguments: Sequence[str]) -> Called:
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed
        if arguments[0] == "restart":
            slots = self.slots()
            settle(slots, started=True)
            self.runs = self.slots().version(self.slots().current)
            if self.runs == BROKEN.version:
                return Called(1, "")
            reported(self.slots())
            return Called(0, "")
        if arguments[0] == "alive":
            return Called(1 if self.dies_later and self.runs == NEW.version else 0, "")
        if "venv" in arguments:
            (Path(arguments[-1]) / "bin").mkdir(parents=True)
            (Path(arguments[-1]) / "lib").mkdir()
        elif "install" in arguments:
            wheel = Path(arguments[-1]).read_text().split()[0].partition("==")[2]
            Path(arguments[5]).write_text(wheel)
        elif "purelib" in arguments[-1]:
            return Called(0, str(Path(arguments[0]).parents[1] / "lib"))
        elif "version" in arguments[-1]:
            return Called(0, Path(arguments[0]).read_text())
        return Called(0, "")


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def changed(device: Device, pinned: Pinned = NEW, *, again: bool = False) -> bool:
    return change(device.slots(), pinned, (), SERVICE, device, again=again, sleep=lambda seconds: None)


def test_versions_take_turns_in_two_slots_and_the_base_stays(device: Device) -> None:
    assert device.slots().current == "base"
    for number, slot in ((3, "a"), (5, "b"), (6, "a")):
        pinned = Pinned(version=f"0.{number}.0", sha256=f"{number}" * 64)
        assert changed(device, pinned) and device.runs == pinned.version and device.slots().current == slot
        assert not changed(device, pinned), "it runs already"
    assert back(device.slots(), SERVICE, device) == "0.5.0" == device.runs
    assert back(device.slots(), SERVICE, device) == "0.6.0" == device.runs
    assert device.slots().version("base") == "0.2.0"


def test_one_that_does_not_report_is_left_and_not_tried_again_by_itself(device: Device) -> None:
    changed(device)
    with pytest.raises(RunError, match=r"0\.4\.0 did not report, 0\.3\.0 runs again"):
        changed(device, BROKEN)
    assert device.runs == "0.3.0" and device.slots().kept.trying is None
    with pytest.raises(RunError, match="did not report here before"):
        changed(device, BROKEN)
    with pytest.raises(RunError, match="runs again"):
        changed(device, BROKEN, again=True)
    assert device.runs == "0.3.0"


def test_one_that_ends_soon_after_its_report_is_left_too(device: Device) -> None:
    device.dies_later = True
    with pytest.raises(RunError, match=r"ended soon after it had reported, 0\.2\.0 runs again"):
        changed(device)
    assert device.runs == "0.2.0" and NEW.sha256 in device.slots().kept.refused


@pytest.mark.parametrize("pinned", [NEW, BROKEN], ids=["good", "broken"])
def test_killed_at_every_step_a_version_that_runs_is_left(tmp_path: Path, pinned: Pinned) -> None:
    for step in range(1, 30):
        device = Device(tmp_path / str(step))
        device.kill_at = step
        try:
            changed(device, pinned)
        except (Killed, RunError) as error:
            if isinstance(error, RunError):
                break
        else:
            break
        # The power is back: the service is started, and started again as long as it ends.
        device.kill_at = 0
        for _ in range(MOST_STARTS + 1):
            if device(("restart",)).code == 0:
                break
        else:
            raise AssertionError(f"killed at step {step} nothing runs")
        assert device.runs in ("0.2.0", "0.3.0")
        # And what was wanted is still possible.
        assert changed(device, NEW, again=True) or device.runs == "0.3.0"
    else:
        raise AssertionError("it never came to its end")
    assert step > 5


@pytest.mark.parametrize(
    ("version", "digest", "place"),
    [("0.3", "a" * 63, "--sha256"), ("0.3; rm", "a" * 64, "VERSION"), ("", "a" * 64, "VERSION")],
)
def test_what_cannot_be_a_version_is_refused(version: str, digest: str, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        Pinned(version=version, sha256=digest)


SERVER, OTHER = (SigningKey(bytes([number]) * 32) for number in (1, 2))
RELEASE = Release(version="0.3.0", sha256="a" * 64, permille=1000)


def node_of(folder: Path, *, releases: bool = True, key: str = "") -> Node:
    trust = f'[trust]\ncoordinator_key = "{key or SERVER.public.hex}"\n' if key != "none" else ""
    (folder / "node.toml").write_text(
        f"""
node = "kitchen"
fleet = "homes"
folder = "{folder}"
[models]
m = "m"
[data]
source = "mine.csv"
[accept]
releases = {"true" if releases else "false"}
[broker]
url = "mqtts://h"
{trust}"""
    )
    return load_config(folder / "node.toml", Node)


def test_what_the_server_wants_counts_by_its_signature_and_the_owners_word(tmp_path: Path, device: Device) -> None:
    slots, post = device.slots(), FleetPost("homes", "", SERVER, 1)
    assert wanted(node_of(tmp_path), slots) is None, "nothing was said"
    first = post.seal(Notice((), RELEASE))
    (tmp_path / RELEASE_FILE).write_bytes(first)
    assert wanted(node_of(tmp_path), slots) == Pinned(version="0.3.0", sha256="a" * 64)
    with pytest.raises(ConfigError, match="accepts no releases"):
        wanted(node_of(tmp_path, releases=False), slots)
    with pytest.raises(ConfigError, match="signed"):
        wanted(node_of(tmp_path, key="none"), slots)
    with pytest.raises(ForgedMessage):
        wanted(node_of(tmp_path, key=OTHER.public.hex), slots)
    # The share does not have it, or the release is taken back.
    (tmp_path / RELEASE_FILE).write_bytes(post.seal(Notice((), msgspec.structs.replace(RELEASE, permille=0))))
    assert wanted(node_of(tmp_path), slots) is None
    (tmp_path / RELEASE_FILE).write_bytes(post.seal(Notice(())))
    assert wanted(node_of(tmp_path), slots) is None
    # Whoever can write the agent's folder brings no earlier version back, and leads nobody elsewhere.
    (tmp_path / "elsewhere").write_bytes(first)
    (tmp_path / RELEASE_FILE).unlink()
    (tmp_path / RELEASE_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        wanted(node_of(tmp_path), slots)
    (tmp_path / RELEASE_FILE).unlink()
    (tmp_path / RELEASE_FILE).write_bytes(first)
    with pytest.raises(WireError, match="older"):
        wanted(node_of(tmp_path), slots)


def test_a_share_has_its_part_of_the_nodes_and_all_of_a_smaller_one() -> None:
    nodes = [f"node-{number}" for number in range(2000)]
    named: set[str] = set()
    for permille in (0, 50, 100, 500, 1000):
        now = {node for node in nodes if msgspec.structs.replace(RELEASE, permille=permille).names(node)}
        assert named <= now and abs(len(now) - 2 * permille) < 100
        named = now
    assert len(named) == 2000
    other = msgspec.structs.replace(RELEASE, sha256="c" * 64, permille=50)
    assert {n for n in nodes if other.names(n)} != {
        n for n in nodes if msgspec.structs.replace(RELEASE, permille=50).names(n)
    }


def test_a_servers_section_is_checked() -> None:
    for key, value in (("version", "0.3 "), ("sha256", "A" * 64), ("share", 2.0)):
        with pytest.raises(ConfigError, match=f"release.{key}"):
            ReleaseSection(**{"version": "0.3.0", "sha256": "a" * 64, key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("user", [False, True])
def test_what_systemd_is_told(device: Device, user: bool) -> None:
    layout = user_layout({}, Path("/home/ann")) if user else system_layout()
    slots = device.slots()
    files = {
        step.path.name: step.content.decode()
        for step in prepared(layout, slots, layout.node_file)
        if isinstance(step, File)
    }
    assert files.keys() == {"50-version.conf", "fedkrso-upgrade.path", "fedkrso-upgrade.service"}
    drop_in = files["50-version.conf"].splitlines()
    assert f"ExecStart={slots.link}/bin/fedkrso client run {layout.node_file} --stay" in drop_in
    # The environment that was installed by hand judges, and as root where the agent is not.
    rights = "" if user else "+"
    judge = f"{rights}{slots.folder.parent}/base/bin/fedkrso client upgrade --slots {slots.folder}{' --user' * user}"
    assert f"ExecStartPre={judge} --settle" in drop_in and f"ExecStartPost={judge} --reported" in drop_in
    assert drop_in.index("ExecStart=") < drop_in.index(
        f"ExecStart={slots.link}/bin/fedkrso client run {layout.node_file} --stay"
    )
    assert f"PathChanged={layout.state}/{RELEASE_FILE}" in files["fedkrso-upgrade.path"]
    assert f"--wanted --node {layout.node_file}" in files["fedkrso-upgrade.service"]
