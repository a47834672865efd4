# SPDX-License-Identifier: Apache-2.0
"""Installing into a folder that stands for a device, with the device's own programs where they can serve one that does
not run."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.install.nodefile import open_kit, started
from edge_client.node import Node
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError
from tests.edge_client.install.installing import contents, install, mode_and_owner, refused
from tests.edge_client.install.provisioned import ProvisionedNode, in_process, needs_root
from tests.patience import a_group

UNIT = "etc/systemd/system/fedkrso-client.service"


needs_sysusers = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or shutil.which("systemctl") is None,
    reason="no systemd-sysusers or systemctl on this machine",
)


@needs_root
@needs_sysusers
class TestIntoAFolder:
    """The whole command, twice and changed, with systemd-sysusers and systemctl working on the folder."""

    def test_everything_lies_where_it_should_and_belongs_to_whom_it_should(self, provisioned: ProvisionedNode) -> None:
        install(provisioned, *provisioned.flags)
        user = next(
            line for line in provisioned.path("etc/passwd").read_text().splitlines() if line.startswith("fedkrso:")
        ).split(":")
        number, group = int(user[2]), int(user[3])
        assert (
            "video:x:44:fedkrso" in provisioned.path("etc/group").read_text()
            and "render" not in provisioned.path("etc/group").read_text()
        )
        assert mode_and_owner(provisioned.path("etc/fedkrso")) == ("0750", 0, group)
        assert mode_and_owner(provisioned.path("etc/fedkrso/node.toml")) == ("0640", 0, group)
        assert mode_and_owner(provisioned.path("etc/fedkrso/authority.pem")) == ("0640", 0, group)
        for secret in ("signing.key", "certificate.key"):
            assert mode_and_owner(provisioned.path(f"etc/fedkrso/{secret}")) == ("0600", number, group)
            assert provisioned.path(f"etc/fedkrso/{secret}").read_bytes() == (provisioned.node / secret).read_bytes()
        assert mode_and_owner(provisioned.path("var/lib/fedkrso")) == ("0750", number, group)
        assert mode_and_owner(provisioned.path(UNIT)) == ("0644", 0, 0)
        assert provisioned.path("etc/systemd/system/multi-user.target.wants/fedkrso-client.service").is_symlink()
        node = load_config(provisioned.path("etc/fedkrso/node.toml"), Node)
        assert (node.node, node.run, node.memory_budget, node.folder) == (
            "kitchen",
            "reviews",
            "1GiB",
            "/var/lib/fedkrso",
        )
        assert (node.model_folder, node.data.source) == (str(provisioned.model), str(provisioned.data))
        assert (
            node.broker.key_file == str(provisioned.path("etc/fedkrso/certificate.key"))
            and node.trust.coordinator_key is not None
        )

    def test_a_second_time_changes_nothing_and_says_so(self, provisioned: ProvisionedNode) -> None:
        install(provisioned, *provisioned.flags)
        before = contents(provisioned.root)
        assert (
            install(provisioned, *provisioned.flags)
            == "nothing to do: it is installed like this already\n"
            == install(provisioned)
        )
        assert contents(provisioned.root) == before

    def test_a_changed_budget_changes_the_unit_and_the_owner_s_words_stay(self, provisioned: ProvisionedNode) -> None:
        install(provisioned, *provisioned.flags)
        path = provisioned.path("etc/fedkrso/node.toml")
        path.write_text(
            path.read_text().replace("# [policy]\n", "[policy]\n").replace("# mains_only", "mains_only") + "\n# mine\n"
        )
        said = install(provisioned, "--budget", "1.5GiB", "--label", "mood").splitlines()
        assert [line.split()[1] for line in said] == ["/etc/fedkrso/node.toml", f"/{UNIT}"]
        text, node = path.read_text(), load_config(path, Node)
        assert (
            "# mine" in text and node.policy.mains_only and node.memory_budget == "1.5GiB" and node.data.label == "mood"
        )
        assert "MemoryHigh=1536M" in provisioned.path(UNIT).read_text()

    def test_a_mode_that_was_loosened_is_put_right(self, provisioned: ProvisionedNode) -> None:
        install(provisioned, *provisioned.flags)
        key = provisioned.path("etc/fedkrso/signing.key")
        key.chmod(0o644)
        assert "/etc/fedkrso/signing.key" in install(provisioned)
        assert mode_and_owner(key)[0] == "0600"

    def test_a_copied_model_follows_its_source(self, provisioned: ProvisionedNode) -> None:
        install(provisioned, *provisioned.flags, "--copy-model")
        copy = provisioned.path("var/lib/fedkrso/model")
        assert load_config(provisioned.path("etc/fedkrso/node.toml"), Node).model_folder == "/var/lib/fedkrso/model"
        assert (copy / "tokens/vocab.txt").read_text() == "a\nb\n" and mode_and_owner(copy / "config.json") == (
            "0644",
            0,
            0,
        )
        assert (
            install(provisioned, "--copy-model")
            == install(provisioned, *provisioned.flags, "--copy-model")
            == install(provisioned)
        )
        (provisioned.model / "tokens/vocab.txt").unlink()
        (provisioned.model / "tokens/merges.txt").write_text("a b\n")
        install(provisioned, *provisioned.flags, "--copy-model")
        assert sorted(path.name for path in (copy / "tokens").iterdir()) == ["merges.txt"]

    def test_taking_away_keeps_keys_and_state_and_purging_does_not(self, provisioned: ProvisionedNode) -> None:
        install(provisioned, *provisioned.flags)
        update = provisioned.path("var/lib/fedkrso/outbox/1.update")
        update.parent.mkdir()
        update.write_bytes(b"unsent")
        assert in_process("client", "uninstall", "--root", provisioned.root).returncode == 0
        assert not provisioned.path(UNIT).exists() and not list(
            provisioned.path("etc/systemd/system").rglob("*.service")
        )
        assert update.exists() and provisioned.path("etc/fedkrso/signing.key").exists()
        install(provisioned)
        assert provisioned.path(UNIT).exists()
        refused = in_process("client", "uninstall", "--root", provisioned.root, "--purge")
        assert refused.returncode == 130 and update.exists(), "purging asks, and nobody answered"
        assert in_process("client", "uninstall", "--root", provisioned.root, "--purge", "--yes").returncode == 0
        assert (
            not update.exists()
            and not provisioned.path("etc/fedkrso").exists()
            and not provisioned.path("etc/sysusers.d/fedkrso.conf").exists()
        )
        again = in_process("client", "uninstall", "--root", provisioned.root)
        assert again.stdout == "nothing to do: nothing is installed\n"

    def test_on_a_terminal_it_asks_for_what_is_missing(self, provisioned: ProvisionedNode) -> None:
        controller, terminal = pty.openpty()
        command = [sys.executable, "-c", "from fedcore.command import main; main()", "client", "install"]
        with a_group(
            [*command, "--root", str(provisioned.root), "--from", str(provisioned.node)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            cwd=provisioned.root.parent,
        ) as process:
            os.write(controller, b"reviews\nmodel\nmy data.csv\n\nmood\n700 MiB\n")
            output, _ = process.communicate(timeout=300)
        os.close(controller)
        os.close(terminal)
        assert process.returncode == 0, output
        node = load_config(provisioned.path("etc/fedkrso/node.toml"), Node)
        assert (node.run, node.data.text, node.data.label, node.memory_budget) == ("reviews", "text", "mood", "700 MiB")
        assert (node.model_folder, node.data.source) == (str(provisioned.model), str(provisioned.data))


def test_a_dry_run_shows_every_file_and_no_secret_and_changes_nothing(provisioned: ProvisionedNode) -> None:
    before = contents(provisioned.root)
    shown = install(provisioned, *provisioned.flags, "--dry-run")
    assert contents(provisioned.root) == before
    for path in ("node.toml", "authority.pem", "certificate.pem", "certificate.key", "signing.key"):
        assert f"/etc/fedkrso/{path}" in shown
    for text in (
        "WatchdogSec=",
        "Delegate=memory",
        'run = "reviews"',
        "BEGIN CERTIFICATE",
        "systemd-sysusers",
        "(secret, 65 bytes)",
    ):
        assert text in shown
    assert (provisioned.node / "signing.key").read_text().strip() not in shown and "PRIVATE KEY" not in shown
    assert "fedkrso-serve" not in shown
    served = install(provisioned, *provisioned.flags, "--serve", "--dry-run")
    assert contents(provisioned.root) == before
    for text in ("client serve /etc/fedkrso/node.toml", "/etc/systemd/system/fedkrso.slice", "enable fedkrso-serve"):
        assert text in served


@pytest.mark.parametrize(
    ("code", "match", "changes"),
    [
        (2, "data.source missing (write --data ...)", {"--data": None}),
        (2, "run, data.source missing (write --run ... --data ...)", {"--data": None, "--run": None}),
        (2, "nothing is installed yet (write the node's folder", {"--from": None}),
        (2, "neither node.toml nor connection.toml is in this folder", {"--from": "."}),
        (2, "no such file (write --data with", {"--data": "nowhere.csv"}),
        (4, "no such model folder", {"--model": "nowhere"}),
        (4, "no package 'nowhere'", {"--model": "nowhere:model"}),
        (2, "'many gigs' is not a size", {"--budget": "many gigs"}),
        (8, "less than the 256 MiB", {"--budget": "10MiB"}),
        (8, "does not tell how much memory", {"--budget": "60%"}),
        (2, "'a b' cannot be a name", {"--run": "a b"}),
        (2, "the certificate is of 'kitchen', the node file of 'garden' (write --node kitchen)", {"--node": "garden"}),
        (2, "broker.insecure: mqtt://x:1 is not encrypted", {"--broker": "mqtt://x:1"}),
        (2, "no such program", {"--program": "nowhere"}),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(
    provisioned: ProvisionedNode, code: int, match: str, changes: dict[str, str | None]
) -> None:
    flags = dict(zip(provisioned.flags[::2], provisioned.flags[1::2], strict=True)) | changes
    before = contents(provisioned.root)
    refused(
        code,
        match,
        "--root",
        provisioned.root,
        *(part for key, value in flags.items() if value is not None for part in (key, value)),
    )
    assert contents(provisioned.root) == before


def test_damaged_folders_are_refused_with_one_line(provisioned: ProvisionedNode) -> None:
    flags = ["--root", provisioned.root, *provisioned.flags]
    (provisioned.node / "certificate.key").write_bytes(
        (provisioned.node.parent / "garden/certificate.key").read_bytes()
    )
    refused(2, "do not fit each other", *flags)
    (provisioned.node / "signing.key").write_text("abc")
    refused(2, "trust.signing_key", *flags)
    (provisioned.node / "signing.key").unlink()
    refused(2, "take the whole folder", *flags)
    (provisioned.node / "connection.toml").write_text("= 3")
    refused(2, "not TOML", *flags)


def test_data_that_the_service_s_user_may_not_read_is_refused(provisioned: ProvisionedNode) -> None:
    provisioned.data.chmod(0o600)
    refused(2, "may not read it (chmod -R o+rX", "--root", provisioned.root, *provisioned.flags)


def test_a_system_without_systemd_and_mixed_flags(provisioned: ProvisionedNode) -> None:
    if not Path("/run/systemd/system").is_dir():
        refused(2, "systemd does not run here", *provisioned.flags)
        done = in_process("client", "status")
        assert done.returncode in (2, 10) and len(done.stderr.splitlines()) == 1
    refused(
        2, "a service of one user belongs to a running system", "--user", "--root", provisioned.root, *provisioned.flags
    )


def test_a_node_file_that_is_no_longer_toml_is_not_written_over(provisioned: ProvisionedNode, tmp_path: Path) -> None:
    broken = tmp_path / "node.toml"
    broken.write_text("node = ")
    with pytest.raises(ConfigError, match="not TOML"):
        started(broken, open_kit(provisioned.node), {})
