# SPDX-License-Identifier: Apache-2.0
"""The doctor on made-up machines: each check's failure with its remedy, and no check that raises or hangs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edge_client.commands.doctor import doctor
from edge_client.doctor.base import Check, within
from edge_client.doctor.checks import as_text, examine
from edge_client.doctor.machine import clock, device, sensors
from edge_client.doctor.node import node_file, node_parts
from edge_client.doctor.software import packages
from edge_client.doctor.system import network, service, storage
from edge_client.owner.policy import PolicySection
from fedcore.config.sections import BrokerSection, DataSection
from fedcore.device.readings import Readings
from fedcore.errors import WorkerError
from tests.edge_client.doctor.made_up import JETSON, by_name, expect, node, surroundings


def test_software_too_old_missing_and_light() -> None:
    needed = [
        "click>=8.1",
        "msgspec>=999.1",
        "no-such-thing>=1",
        'torch-of-nobody>=2.4; extra == "train"',
        'x>=1; extra == "test"',
        'tomli>=2.0; python_version < "3.10"',
        'bitsandbytes>=0.46; extra == "train"',
    ]
    found = list(packages(needed, training=False))
    expect(found, "click", "ok")
    expect(found, "msgspec", "error", "older than 999.1", "pip install --upgrade 'msgspec>=999.1'")
    expect(found, "no-such-thing", "error", "not installed", "pip install fedkrso")
    expect(found, "training", "warning", "cannot train: torch-of-nobody", "fedkrso[train]")
    assert by_name(found).keys().isdisjoint({"x", "tomli"})
    expect(list(packages(needed, training=True)), "training", "error")


def test_bitsandbytes_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    expect(list(packages(['bitsandbytes-of-nobody>=0.46; extra == "train"'], training=False)), "training", "warning")
    monkeypatch.setattr("edge_client.doctor.software._OPTIONAL", ("bitsandbytes-of-nobody",))
    expect(
        list(packages(['bitsandbytes-of-nobody>=0.46; extra == "train"'], training=True)),
        "bitsandbytes-of-nobody",
        "ok",
    )


def test_a_device_that_is_slow_and_one_that_cannot_tell_what_its_policy_asks(tmp_path: Path) -> None:
    hot = Readings(
        temperatures_celsius={"tj": 97.0}, power_watts=14.0, power_mode="15W", throttled=True, throttle_reason="heat"
    )
    found = device(surroundings(tmp_path, hot, JETSON), None)
    expect(found, "kind", "ok", "JetPack 6.2")
    expect(found, "accelerator", "ok", "compute capability 8.7")
    expect(found, "sensors", "ok", "tj 97 °C, 14.0 W")
    expect(found, "power mode", "ok", "15W")
    expect(found, "throttling", "warning", "heat", "cooling")
    strict = node(policy=PolicySection(max_temperature_celsius=75, mains_only=True))
    mute = list(sensors(Readings(on_mains=True), strict))
    expect(mute, "policy.max_temperature_celsius", "error", "rest for ever")
    assert "policy.mains_only" not in by_name(mute)


def test_clocks(tmp_path: Path) -> None:
    expect(clock(surroundings(tmp_path, clock=lambda: 3600.0), None), "date", "error", "1970", "timedatectl")
    said: Callable[[str], Callable[..., str]] = lambda text: lambda command, seconds: text  # noqa: E731
    expect(clock(surroundings(tmp_path, run=said("no\n")), None), "synchronised", "warning", "no", "set-ntp")
    expect(clock(surroundings(tmp_path, run=said("yes\n")), None), "synchronised", "ok")
    expect(clock(surroundings(tmp_path, run=said("Failed to connect")), None), "synchronised", "ok", "not told")


def test_a_node_file_with_faults_and_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("nod = 3\n")
    assert (
        node_file(path)[0] is None
        and node_file(path)[1].state == "error"
        and "did you mean 'node'" in node_file(path)[1].remedy + node_file(path)[1].found
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.csv").write_text("text,lable\nhello,a\n")
    (tmp_path / "key").write_text("not a key")
    named = node(
        model_folder=str(tmp_path / "empty"),
        data=DataSection(source=str(tmp_path / "data.csv")),
        trust=msgspec.convert({"signing_key": str(tmp_path / "key"), "coordinator_key": "zz"}, type(node().trust)),
        broker=BrokerSection(url="mqtts://h", ca_file=str(tmp_path / "key"), certificate_file="none", key_file="none"),
    )
    around = surroundings(tmp_path, environment=os.environ)
    found = node_parts(around, named)
    expect(found, "model", "error", "no config.json", "copy the whole model folder")
    expect(found, "data", "error", "no column 'label'", "did you mean 'lable'?")
    expect(found, "signing key", "error")
    expect(found, "coordinator's key", "error")
    expect(found, "certificate", "error")
    (tmp_path / "data.csv").write_text("text,label\nhello,a\n\nthere,b\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_text("")
    right = node_parts(
        around, node(model_folder=str(tmp_path / "model"), data=DataSection(source=str(tmp_path / "data.csv")))
    )
    expect(right, "data", "ok", "2 rows can be read")
    expect(right, "model", "ok")


def test_a_model_that_writes_is_compared_with_transformers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.edge_client.serving.tiny_chat import write_tiny_chat

    tiny = write_tiny_chat(tmp_path / "tiny")
    (tmp_path / "data.csv").write_text("text,label\nhello,a\n")
    named = node(model_folder=str(tiny), data=DataSection(source=str(tmp_path / "data.csv")))
    expect(node_parts(surroundings(tmp_path), named), "comparison", "ok", "--quick")
    around = surroundings(tmp_path, environment=os.environ, quick=False)
    expect(node_parts(around, named), "comparison", "ok", "equal to transformers on the same weights: logits within")


def test_certificates_that_end_soon_have_ended_or_are_fine(tmp_path: Path) -> None:
    from coordinator.provisioning.broker import LocalBroker, find_mosquitto

    if find_mosquitto() is None:
        pytest.skip("no mosquitto binary on this machine")
    with LocalBroker(tmp_path / "broker", ["a"], tls=True, run="t") as broker:
        files = broker.settings("a", "a")
        assert files.certificate_file is not None
        named = node(
            broker=BrokerSection(
                url=broker.url, ca_file=files.ca_file, certificate_file=files.certificate_file, key_file=files.key_file
            )
        )
        found = node_parts(surroundings(tmp_path, clock=time.time), named)
        expect(found, "certificate", "ok", "days left")
        expect(found, "authority", "ok", "days left")
        days = int(by_name(found)["certificate"].found.split()[0].replace(",", ""))
        for ahead, state in ((days - 3, "warning"), (days + 3, "error")):
            later = surroundings(tmp_path, clock=lambda ahead=ahead: time.time() + ahead * 86_400)  # type: ignore[misc]
            expect(node_parts(later, named), "certificate", state, "days", "renew")
        expect(network(surroundings(tmp_path), named), "broker", "ok", "TLS")
    assert within(60, "network", lambda: network(surroundings(tmp_path), named))[0].state == "error"


def test_disks_that_are_full_or_read_only(tmp_path: Path) -> None:
    expect(storage(surroundings(tmp_path), node(folder=str(tmp_path / "not" / "yet"))), "folder", "ok", "GiB free")
    expect(
        storage(surroundings(tmp_path), node(folder=str(tmp_path), disk_limit="900000 GiB")),
        "folder",
        "warning",
        "less than disk_limit",
    )
    expect(
        storage(surroundings(tmp_path), node(folder=str(tmp_path), disk_reserve="900000 GiB")),
        "folder",
        "error",
        "disk_reserve",
        "free space",
    )
    expect(storage(surroundings(tmp_path), node(folder="/proc/fedkrso")), "folder", "error", "/proc", "right to write")


@pytest.mark.parametrize(
    ("said", "state", "found"),
    [
        ("LoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=0\n", "ok", "active (running), 0 restarts"),
        ("LoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=9\n", "warning", "9 restarts"),
        ("LoadState=loaded\nActiveState=failed\nSubState=failed\nNRestarts=5\n", "error", "failed"),
        ("LoadState=loaded\nActiveState=inactive\nSubState=dead\nNRestarts=0\n", "warning", "inactive"),
        ("LoadState=not-found\nActiveState=inactive\n", "ok", "not installed"),
        (None, "ok", "not installed"),
    ],
)
def test_the_service(tmp_path: Path, said: str | None, state: str, found: str) -> None:
    assert service(surroundings(tmp_path), None) == []
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    checks = service(surroundings(tmp_path, run=lambda command, seconds: said), None)
    expect(checks, "fedkrso-client", state, found)


def test_no_check_raises_or_hangs() -> None:
    def refuse() -> Sequence[Check]:
        raise WorkerError("no", place="there", remedy="do this")

    def fail() -> Sequence[Check]:
        raise ZeroDivisionError("what")

    def hang() -> Sequence[Check]:
        time.sleep(5)
        return []

    assert within(5, "g", refuse) == [Check("g", "g", "error", "there: no", "do this")]
    assert "ZeroDivisionError: what" in within(5, "g", fail)[0].found
    started = time.monotonic()
    assert "no answer within" in within(0.2, "g", hang)[0].found and time.monotonic() - started < 3


def test_an_empty_machine_is_examined_to_the_end(tmp_path: Path) -> None:
    """No file of the system is there, the node file neither."""
    found = list(examine(surroundings(tmp_path, node_file=tmp_path / "none.toml")))
    assert {check.group for check in found} >= {"node", "software", "device", "memory", "compute", "clock"}
    expect([check for check in found if check.group == "node"], "file", "error", "no such file")
    assert all(check.remedy for check in found if check.state != "ok")
    assert "ERROR" in as_text(found)


def test_the_command(tmp_path: Path) -> None:
    good = CliRunner().invoke(doctor, ["--quick", "--json"])
    assert good.exit_code == 0 and {"group", "check", "state", "found", "remedy"} == set(json.loads(good.stdout)[0])
    bad = CliRunner().invoke(doctor, ["--quick", "--node", str(tmp_path / "none.toml")])
    assert bad.exit_code == 1 and "ERROR" in bad.stdout and "\nsoftware\n" in bad.stdout
