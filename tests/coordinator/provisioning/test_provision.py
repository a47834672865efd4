# SPDX-License-Identifier: Apache-2.0
"""A run's certificates, keys and rules: right, complete, never written twice, and taken away again."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.commands.provision import provision as provision_command
from coordinator.commands.provision import revoke as revoke_command
from coordinator.job import Job
from coordinator.provisioning.provision import Yard, provision, revoke
from coordinator.provisioning.register import load_register, save_register
from edge_client.node import Node
from fedcore.config.broker import mqtt_settings
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError, ForgedMessage
from fedcore.wire.identity import Enrolment, PublicKey, load_public_key, load_signing_key
from fedcore.wire.messages import UP_KINDS
from fedcore.wire.secure import certified_bytes

NOW = dt.datetime(2031, 5, 1, tzinfo=dt.timezone.utc)


def make(folder: Path, *nodes: str, run: str = "voice", **options: Any) -> Yard:
    options.setdefault("hosts", () if folder.exists() else ("broker.example.org", "192.168.1.10"))
    provision(folder, run, nodes, now=options.pop("now", NOW), **options)
    return Yard(folder)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def secrets(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.key")}


def revoked_serials(yard: Yard) -> set[int]:
    found = x509.load_pem_x509_crl((yard.broker / "revoked.crl").read_bytes())
    assert found.is_signature_valid(certificate(yard.authority / "authority.pem").public_key())  # type: ignore[arg-type]
    return {entry.serial_number for entry in found}


def test_every_secret_is_its_owners_and_the_authoritys_is_in_one_place(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "kitchen", "garden")
    keys = secrets(yard.root)
    assert sorted(keys) == [
        "authority/authority.key",
        "authority/enrolling.key",
        "broker/broker.key",
        *(
            f"{who}/{kind}.key"
            for who in ("coordinator", "nodes/garden", "nodes/kitchen")
            for kind in ("certificate", "signing")
        ),
    ]
    assert len(set(keys.values())) == len(keys)
    assert all((yard.root / name).stat().st_mode & 0o777 == 0o600 for name in keys)
    assert all(
        part.stat().st_mode & 0o777 == 0o700
        for part in (yard.root, yard.authority, yard.broker, yard.client("kitchen"))
    )
    others = [path for path in yard.root.rglob("*") if path.is_file() and path.parent != yard.authority]
    for secret in ("authority/authority.key", "authority/enrolling.key"):
        assert not any(keys[secret].strip() in path.read_bytes() for path in others)
    assert "offline" in (yard.authority / "README.txt").read_text()


def test_certificates_say_what_they_are_for_and_no_more(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "kitchen", days=90)
    authority = certificate(yard.authority / "authority.pem")
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and usage.crl_sign and not usage.digital_signature
    expected = {
        yard.broker / "broker.pem": ("broker", ExtendedKeyUsageOID.SERVER_AUTH),
        yard.client("coordinator") / "certificate.pem": ("coordinator", ExtendedKeyUsageOID.CLIENT_AUTH),
        yard.client("kitchen") / "certificate.pem": ("kitchen", ExtendedKeyUsageOID.CLIENT_AUTH),
    }
    for path, (name, purpose) in expected.items():
        found = certificate(path)
        found.verify_directly_issued_by(authority)
        assert [entry.value for entry in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
        assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert found.not_valid_after_utc == NOW + dt.timedelta(days=90)
    names = (
        certificate(yard.broker / "broker.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    )
    assert names.get_values_for_type(x509.DNSName) == ["broker.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.168.1.10")]


def test_a_certificate_never_outlives_its_authority(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a")
    make(yard.root, "late", now=NOW + dt.timedelta(days=3600))
    until = certificate(yard.authority / "authority.pem").not_valid_after_utc
    assert certificate(yard.client("late") / "certificate.pem").not_valid_after_utc == until


def test_the_sections_fit_job_and_node_files_and_the_keys_fit_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = make(tmp_path / "p", "kitchen")
    monkeypatch.chdir(tmp_path)
    job_file, node_file = yard.client("coordinator") / "job.toml", yard.client("kitchen") / "node.toml"
    head = '[model]\nfolder = "m"\n[task]\nkind = "regression"\n'
    job_file.write_text('run = "voice"\n' + head + (job_file.parent / "connection.toml").read_text())
    head = 'node = "kitchen"\nrun = "voice"\nmodel_folder = "package:model"\n[data]\nsource = "mine.csv"\n'
    node_file.write_text(head + (node_file.parent / "connection.toml").read_text())
    job, node = load_config(job_file, Job), load_config(node_file, Node)
    # Paths in a file are seen from that file's folder, names are left alone.
    assert node.data.source == str(node_file.parent / "mine.csv") and node.model_folder == "package:model"
    assert job.model.folder == str(job_file.parent / "m")
    assert mqtt_settings(node.broker, "x").address == ("broker.example.org", 8883)
    assert mqtt_settings(job.broker, "x").tls
    assert job.trust.enrolled and job.trust.signing_key and node.trust.signing_key and node.trust.coordinator_key
    enrolment = Enrolment.load(Path(job.trust.enrolled))
    plan, update = load_signing_key(Path(job.trust.signing_key)), load_signing_key(Path(node.trust.signing_key))
    load_public_key(node.trust.coordinator_key).check(plan.sign(b"plan"), b"plan")
    enrolment.key_of("kitchen").check(update.sign(b"update"), b"update")


def test_again_adds_nodes_and_keeps_every_key_and_certificate(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a")
    before = {path: path.read_bytes() for path in (*yard.root.rglob("*.key"), *yard.root.rglob("*.pem"))}
    done = provision(yard.root, "voice", ["a", "b"], now=NOW)
    assert done.added == ["b"] and done.kept == ["broker", "coordinator", "a"] and not done.renewed
    assert {path: path.read_bytes() for path in before} == before
    assert Enrolment.load(yard.enrolled).nodes.keys() == {"a", "b"}


def test_what_an_interrupted_call_left_out_is_made_up_for(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a")
    keys = secrets(yard.root)
    for lost in (yard.client("a") / "certificate.pem", yard.enrolled, yard.broker / "access.acl"):
        lost.unlink()
    (yard.client("a") / "signing.key.new").write_text("half")
    make(yard.root, "a")
    assert secrets(yard.root) == keys and yard.enrolled.exists() and (yard.broker / "access.acl").exists()
    certificate(yard.client("a") / "certificate.pem").verify_directly_issued_by(
        certificate(yard.authority / "authority.pem")
    )


def test_a_node_whose_files_went_to_its_device_for_good_stays_as_it_is(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a")
    before = Enrolment.load(yard.enrolled)
    shutil.rmtree(yard.client("a"))
    (yard.client("coordinator") / "signing.key").unlink()
    (yard.client("coordinator") / "certificate.key").unlink()
    done = provision(yard.root, "voice", ["a", "b"], now=NOW)
    assert done.added == ["b"] and "a" in done.kept and not yard.client("a").exists()
    after = Enrolment.load(yard.enrolled)
    assert after.coordinator == before.coordinator and after.nodes["a"] == before.nodes["a"]
    with pytest.raises(ConfigError, match=r"certificate.key: the key of 'a' is not here \(bring it back"):
        make(yard.root, renew=["a"])
    revoke(yard.root, ["a"], now=NOW)
    assert Enrolment.load(yard.enrolled).revoked == ("a",) and len(revoked_serials(yard)) == 1


def test_another_host_makes_the_brokers_certificate_anew_on_the_same_key(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a", options={"port": 9000})
    keys, before = secrets(yard.root), certificate(yard.broker / "broker.pem")
    make(yard.root, hosts=("localhost",))
    after = certificate(yard.broker / "broker.pem")
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example.org", "localhost"]
    assert secrets(yard.root) == keys and before.serial_number != after.serial_number
    assert "listener 9000" in (yard.broker / "mosquitto.conf").read_text()


def test_renewal_keeps_the_key_and_revoking_takes_every_certificate_of_the_node(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a", "b")
    path, key = yard.client("a") / "certificate.pem", (yard.client("a") / "certificate.key").read_bytes()
    first = certificate(path)
    make(yard.root, renew=["a"], now=NOW + dt.timedelta(days=700))
    second = certificate(path)
    assert first.public_key() == second.public_key() and (yard.client("a") / "certificate.key").read_bytes() == key
    assert second.not_valid_after_utc == first.not_valid_after_utc + dt.timedelta(days=700)
    assert revoked_serials(yard) == set()
    revoke(yard.root, ["a"], now=NOW)
    assert revoked_serials(yard) == {first.serial_number, second.serial_number}
    assert Enrolment.load(yard.enrolled).revoked == ("a",)
    rules = (yard.broker / "access.acl").read_text()
    assert "user b" in rules and "user a" not in rules and "node/a/" not in rules
    # Adding somebody later does not let it in again.
    make(yard.root, "c")
    assert revoked_serials(yard) == {first.serial_number, second.serial_number}
    assert "node/a/" not in (yard.broker / "access.acl").read_text()
    with pytest.raises(ConfigError, match="'a' is revoked and stays so"):
        make(yard.root, "a")


def test_one_more_run_of_the_same_machines_only_adds_rights(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a")
    keys = secrets(yard.root)
    make(yard.root, run="second")
    assert secrets(yard.root) == keys
    rules = (yard.broker / "access.acl").read_text()
    assert all(
        f"topic write fedkrso/2/{run}/node/a/up/{kind}" in rules for run in ("voice", "second") for kind in UP_KINDS
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["voice", "a/b", "--broker-host", "h"], "NODE: 'a/b' cannot be a name (letters, digits"),
        (["voice", "+", "--broker-host", "h"], "NODE: '+' cannot be a name"),
        (["voi ce", "a", "--broker-host", "h"], "RUN: 'voi ce' cannot be a name"),
        (["voice", "coordinator", "--broker-host", "h"], "a node cannot be called 'coordinator'"),
        (
            ["voice", "a"],
            "--broker-host: the broker's certificate needs a host (write what devices connect to, such as --broker-host",
        ),
        (["voice", "a", "--broker-host", "mqtts://h:8883"], "'mqtts://h:8883' is neither a host name nor an address"),
        (["voice", "a", "--broker-host", "300.1.1.1"], "neither a host name nor an address"),
        (["voice", "a", "--broker-host", "*.example.org"], "neither a host name nor an address"),
        (["voice", "a", "--broker-host", "h", "--days", "0"], "--days: 0 days are outside 1 to 3650"),
        (["voice", "a", "--broker-host", "h", "--port", "70000"], "70000 is not a port"),
        (["voice", "a", "--broker-host", "h", "--renew", "b"], "'b' was never provisioned here"),
    ],
)
def test_wrong_input_is_refused_with_the_remedy(tmp_path: Path, arguments: list[str], match: str) -> None:
    result = CliRunner().invoke(provision_command, [*arguments, "--out", str(tmp_path / "p")])
    assert isinstance(result.exception, ConfigError) and match in result.exception.one_line()
    assert not secrets(tmp_path)


def test_the_commands_say_what_to_copy(tmp_path: Path) -> None:
    out = tmp_path / "p"
    made = CliRunner().invoke(
        provision_command, ["voice", "kitchen", "--out", str(out), "--broker-host", "h", "--broker-folder", "/srv/m/"]
    )
    assert made.exit_code == 0, made.output
    assert f"copy {out}/broker/ to /srv/m/" in made.output and f"kitchen: copy {out}/nodes/kitchen/" in made.output
    assert "certfile /srv/m/broker.pem" in (out / "broker" / "mosquitto.conf").read_text()
    # A later call that says nothing of the broker leaves it as it is.
    again = CliRunner().invoke(provision_command, ["voice", "garden", "--out", str(out)])
    assert again.exit_code == 0 and "certfile /srv/m/broker.pem" in (out / "broker" / "mosquitto.conf").read_text()
    gone = CliRunner().invoke(revoke_command, [str(out), "kitchen"])
    assert (
        gone.exit_code == 0
        and str(out / "broker" / "revoked.crl") in gone.output
        and str(out / "coordinator" / "enrolled.json") in gone.output
    )
    assert json.loads((out / "coordinator" / "enrolled.json").read_text())["revoked"] == ["kitchen"]


def test_revoking_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is provisioned here"):
        revoke(tmp_path, ["a"], now=NOW)
    yard = make(tmp_path / "p", "kitchen")
    with pytest.raises(ConfigError, match="did you mean 'kitchen'"):
        revoke(yard.root, ["kichen"], now=NOW)
    with pytest.raises(ConfigError, match="'broker' was never"):
        revoke(yard.root, ["broker"], now=NOW)


def test_without_the_authority_nothing_is_made_and_no_other_one_either(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a")
    for name in ("authority.key", "enrolling.key"):
        (yard.authority / name).rename(tmp_path / "drawer")
        for call in (lambda: make(yard.root, "b"), lambda: revoke(yard.root, ["a"], now=NOW)):
            with pytest.raises(
                ConfigError,
                match=r"the authority is not here \(bring back authority.pem, authority.key and enrolling.key\)",
            ):
                call()
        assert not yard.client("b").exists() and not (yard.authority / name).exists()
        (tmp_path / "drawer").rename(yard.authority / name)
    make(yard.root, "b")


def test_every_node_has_the_authority_s_word_for_its_key_also_in_a_folder_of_before(tmp_path: Path) -> None:
    yard = make(tmp_path / "p", "a")
    # As it was before nodes were enrolled with a key of its own.
    register = load_register(yard)
    save_register(yard, msgspec.structs.replace(register, enrolling=""))
    yard.enrolling_key.unlink()
    make(yard.root, "b")
    found, authorities = Enrolment.load(yard.enrolled), set()
    for name in ("a", "b"):
        trust = msgspec.toml.decode((yard.client(name) / "connection.toml").read_bytes())["trust"]
        signature = bytes.fromhex(trust["enrolment"])
        PublicKey(trust["authority_key"]).check(signature, certified_bytes(name, found.nodes[name]))
        authorities.add(trust["authority_key"])
        with pytest.raises(ForgedMessage):
            PublicKey(trust["authority_key"]).check(signature, certified_bytes("c", found.nodes[name]))
    assert authorities == {load_register(yard).enrolling}
