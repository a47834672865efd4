# SPDX-License-Identifier: Apache-2.0
"""`fedkrso provision --site`: who belongs where, who may speak for whom, and what a call may not change."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.commands.provision import provision as provision_command
from coordinator.commands.provision import revoke as revoke_command
from coordinator.provisioning.provision import Yard, provision, revoke
from fedcore.errors import ConfigError
from fedcore.wire.identity import Enrolment

NOW = dt.datetime(2031, 5, 1, tzinfo=dt.timezone.utc)


def call(yard: Yard, *nodes: str, run: str = "voice", **options: Any) -> Yard:
    provision(yard.root, run, nodes, now=NOW, **options)
    return yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    """A node at the central broker, two at a farm."""
    made = call(Yard(tmp_path / "p"), "near", hosts=["central.example.org", "10.0.0.1"])
    return call(made, "far", "barn", site="farm", hosts=["10.7.0.1"], options={"port": 9000})


def rights(folder: Path) -> dict[str, set[str]]:
    """The access rules, by user."""
    users = (folder / "access.acl").read_text().split("\nuser ")[1:]
    return {user.split("\n")[0]: {line for line in user.split("\n")[1:] if line} for user in users}


def test_a_site_has_its_own_broker_and_a_bridge_with_two_certificates(yard: Yard) -> None:
    site = yard.site("farm")
    files = [
        "access.acl",
        "authority.pem",
        "bridge.key",
        "bridge.pem",
        "broker.key",
        "broker.pem",
        "mosquitto.conf",
        "revoked.crl",
    ]
    assert sorted(path.name for path in site.iterdir()) == files and site.stat().st_mode & 0o777 == 0o700
    assert all((site / name).stat().st_mode & 0o777 == 0o600 for name in ("bridge.key", "broker.key"))
    authority = x509.load_pem_x509_certificate((yard.authority / "authority.pem").read_bytes())
    for stem, name, purpose in (
        ("broker", "broker", ExtendedKeyUsageOID.SERVER_AUTH),
        ("bridge", "farm", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        found = x509.load_pem_x509_certificate((site / f"{stem}.pem").read_bytes())
        found.verify_directly_issued_by(authority)
        assert [entry.value for entry in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
        assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
    text = (site / "mosquitto.conf").read_text()
    assert "\nlistener 9000\n" in text and "\naddress central.example.org:8883\n" in text
    assert "\nconnection" not in (yard.broker / "mosquitto.conf").read_text()
    assert 'url = "mqtts://10.7.0.1:9000"' in (yard.client("far") / "connection.toml").read_text()
    assert 'url = "mqtts://central.example.org:8883"' in (yard.client("near") / "connection.toml").read_text()


def test_the_bridge_may_do_what_its_nodes_may_and_they_nothing_at_the_central_broker(yard: Yard) -> None:
    central, farm = rights(yard.broker), rights(yard.site("farm"))
    assert central.keys() == {"coordinator", "near", "farm"} and farm.keys() == {"far", "barn"}
    assert central["farm"] == farm["far"] | farm["barn"]
    assert not any("near" in line for line in central["farm"]) and "topic read fedkrso/2/voice/plan" in central["farm"]
    assert Enrolment.load(yard.enrolled).nodes.keys() == {"near", "far", "barn"}


def test_nodes_stay_where_they_are_until_a_call_moves_them(yard: Yard) -> None:
    call(yard, "far", "late", run="second")
    assert rights(yard.site("farm")).keys() == {"far", "barn"} and "late" in rights(yard.broker)
    assert "topic read fedkrso/2/second/plan" in rights(yard.broker)["farm"]
    call(yard, "near", site="farm")
    assert rights(yard.site("farm")).keys() == {"far", "barn", "near"} and "near" not in rights(yard.broker)
    assert ":9000" in (yard.client("near") / "connection.toml").read_text()
    call(yard, "far", site="broker")
    assert rights(yard.site("farm")).keys() == {"barn", "near"} and "far" in rights(yard.broker)
    assert ":8883" in (yard.client("far") / "connection.toml").read_text()


def test_keys_are_kept_and_a_site_may_be_gone_to_its_machine(yard: Yard) -> None:
    before = {path: path.read_bytes() for path in yard.root.rglob("*.key")}
    call(yard, "new", site="farm")
    assert {path: path.read_bytes() for path in before} == before
    for path in yard.site("farm").iterdir():
        path.unlink()
    yard.site("farm").rmdir()
    call(yard, "newer", site="farm")
    assert (
        not yard.site("farm").exists() and "topic read fedkrso/2/voice/node/newer/down/#" in rights(yard.broker)["farm"]
    )
    with pytest.raises(ConfigError, match="the key of 'farm' is not here"):
        call(yard, renew=["farm"])


def test_the_way_to_the_central_broker_must_be_in_its_certificate(yard: Yard) -> None:
    call(yard, site="farm", central="10.0.0.1:18883")
    assert "\naddress 10.0.0.1:18883\n" in (yard.site("farm") / "mosquitto.conf").read_text()
    call(yard, "more", site="farm")
    assert "\naddress 10.0.0.1:18883\n" in (yard.site("farm") / "mosquitto.conf").read_text()
    with pytest.raises(
        ConfigError,
        match=r"certificate is not for 10.9.9.9 \(add it first: fedkrso provision RUN --out DIR --broker-host 10.9",
    ):
        call(yard, site="farm", central="10.9.9.9")
    with pytest.raises(ConfigError, match="'99999' is not a port"):
        call(yard, site="farm", central="10.0.0.1:99999")
    with pytest.raises(ConfigError, match="name the site"):
        call(yard, central="10.0.0.1")
    call(yard, hosts=["fd00::1"])
    call(yard, site="farm", central="fd00::1")
    assert "\naddress fd00::1:8883\n" in (yard.site("farm") / "mosquitto.conf").read_text()


def test_names_of_sites_and_nodes_are_apart(yard: Yard, tmp_path: Path) -> None:
    for nodes, site, words in (
        (["farm"], "", "'farm' is a site"),
        ([], "near", "'near' is a node"),
        (["x"], "x", "'x' is a node"),
        ([], "coordinator", "a site cannot be called 'coordinator'"),
        ([], "a/b", "'a/b' cannot be a name"),
    ):
        with pytest.raises(ConfigError, match=words):
            call(yard, *nodes, site=site, hosts=["10.7.0.2"])
    with pytest.raises(ConfigError, match=r"there is no central broker yet \(first: fedkrso provision voice"):
        call(Yard(tmp_path / "q"), "a", site="farm", hosts=["10.7.0.1"])
    with pytest.raises(ConfigError, match="certificate needs a host"):
        call(yard, "a", site="mill")
    assert rights(yard.broker).keys() == {"coordinator", "near", "farm"}


def test_a_revoked_site_loses_its_bridge_and_its_nodes_can_go_elsewhere(yard: Yard) -> None:
    serials = {
        x509.load_pem_x509_certificate((yard.site("farm") / f"{stem}.pem").read_bytes()).serial_number
        for stem in ("broker", "bridge")
    }
    revoke(yard.root, ["farm"], now=NOW)
    assert rights(yard.broker).keys() == {"coordinator", "near"}
    assert {
        entry.serial_number for entry in x509.load_pem_x509_crl((yard.broker / "revoked.crl").read_bytes())
    } == serials
    with pytest.raises(ConfigError, match="'farm' is revoked and stays so"):
        call(yard, "far", site="farm")
    call(yard, "far", "barn", site="broker")
    assert rights(yard.broker).keys() == {"coordinator", "near", "far", "barn"}


def test_a_revoked_node_of_a_site_is_nobody_on_either_side(yard: Yard) -> None:
    revoke(yard.root, ["far"], now=NOW)
    assert rights(yard.site("farm")).keys() == {"barn"} and not any(
        "/far/" in line for line in rights(yard.broker)["farm"]
    )
    for folder in (yard.broker, yard.site("farm")):
        assert len(list(x509.load_pem_x509_crl((folder / "revoked.crl").read_bytes()))) == 1


def test_the_commands_say_what_goes_where(tmp_path: Path) -> None:
    out = str(tmp_path / "p")
    assert (
        CliRunner()
        .invoke(provision_command, ["voice", "near", "--out", out, "--broker-host", "c.example.org"])
        .exit_code
        == 0
    )
    words = [
        "voice",
        "far",
        "--out",
        out,
        "--site",
        "farm",
        "--broker-host",
        "10.7.0.1",
        "--broker-data",
        "/data/",
        "--broker-folder",
        "/f/",
    ]
    done = CliRunner().invoke(provision_command, words)
    assert done.exit_code == 0, done.output
    assert f"farm: copy {out}/sites/farm/ to /f/ on its broker's machine" in done.output
    assert (
        f"broker:      copy {out}/broker/access.acl there" in done.output
        and f"far: copy {out}/nodes/far/" in done.output
    )
    assert "farm: copy" in done.output and "farm/bridge: copy" not in done.output
    text = (tmp_path / "p" / "sites" / "farm" / "mosquitto.conf").read_text()
    assert "\ncafile /f/authority.pem\n" in text and "\npersistence_location /data/\n" in text
    done = CliRunner().invoke(revoke_command, [out, "far"])
    assert done.exit_code == 0 and "sites/farm/access.acl" in done.output and "broker/access.acl" in done.output
