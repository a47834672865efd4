# SPDX-License-Identifier: Apache-2.0
"""Bundles for boards without internet: complete, checked to the last byte, installed without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_client.install.bundle import Contents, make_bundle, verify_bundle
from edge_client.install.machine import Called, run_program
from edge_client.install.manifest import SUMS, check_sums, write_sums
from edge_client.install.nodefile import open_kit, started
from edge_client.install.wheels import TARGETS, Target, fetch_wheels, requirements, this_machine
from fedcore.errors import ConfigError, RunError
from tests.edge_client.install.provisioned import ProvisionedNode, in_process, make_provisioned_node


@pytest.fixture
def provisioned(tmp_path: Path) -> ProvisionedNode:
    return make_provisioned_node(tmp_path)


def a_wheel(folder: Path, name: str, version: str = "1.0", *, needs: str = "", tag: str = "py3-none-any") -> Path:
    """A wheel with a module that says its version."""
    folder.mkdir(exist_ok=True)
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", f"version = {version!r}\n")
        requires = f"Requires-Dist: {needs}\n" if needs else ""
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


class OfflinePip:
    """The real pip, with a folder for a registry and without this machine's settings."""

    def __init__(self, registry: Path) -> None:
        self._registry = registry

    def __call__(self, arguments: Sequence[str]) -> Called:
        assert arguments[1:3] == ("-m", "pip")
        # `--isolated` leaves the system's own configuration in force, and with it whatever versions that pins.
        alone = ("env", f"PIP_CONFIG_FILE={os.devnull}", *arguments[:3], "--isolated")
        return run_program((*alone, *arguments[3:], "--no-index", "--find-links", str(self._registry)))


def contents(provisioned: ProvisionedNode, **options: object) -> Contents:
    kit = open_kit(provisioned.node)
    document = started(None, kit, {"run": "reviews", "data.source": "/srv/mine.csv"})
    return Contents(kit, document, str(provisioned.model), this_machine(), **options)  # type: ignore[arg-type]


@pytest.fixture
def bundle(provisioned: ProvisionedNode, tmp_path: Path) -> Path:
    own = a_wheel(tmp_path / "own", "fedkrso", "0.1.0", needs="leaf")
    a_wheel(tmp_path / "registry", "leaf")
    make_bundle(tmp_path / "bundle", contents(provisioned, extras="", own=own), OfflinePip(tmp_path / "registry"))
    return tmp_path / "bundle"


def test_a_bundle_has_wheels_model_keys_node_file_and_script(bundle: Path, provisioned: ProvisionedNode) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "SHA256SUMS",
        "install.sh",
        "requirements.txt",
        "model/config.json",
        "model/tokens/vocab.txt",
        "wheels/fedkrso-0.1.0-py3-none-any.whl",
        "wheels/leaf-1.0-py3-none-any.whl",
        *(
            f"node/{name}"
            for name in ("node.toml", "authority.pem", "certificate.pem", "certificate.key", "signing.key")
        ),
    }
    assert (bundle / "node/signing.key").stat().st_mode & 0o077 == 0 and bundle.stat().st_mode & 0o077 == 0
    kit = open_kit(bundle / "node")
    assert (
        kit.name == "kitchen"
        and kit.document["model_folder"] == str(bundle / "node/../model")
        and kit.document["run"] == "reviews"
    )
    assert subprocess.run(["sh", "-n", str(bundle / "install.sh")], check=False).returncode == 0
    sums = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=bundle, check=False, capture_output=True)
    assert sums.returncode == 0 and in_process("client", "bundle", "--verify", bundle).returncode == 0


def test_every_single_file_is_under_its_sum(bundle: Path) -> None:
    for path in [path for path in bundle.rglob("*") if path.is_file()]:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(ConfigError):
            verify_bundle(bundle)
        path.write_bytes(before)
    verify_bundle(bundle)
    (bundle / "wheels/more.whl").write_bytes(b"")
    with pytest.raises(ConfigError, match="wheels/more.whl was never in the bundle"):
        verify_bundle(bundle)
    (bundle / "wheels/more.whl").unlink()
    (bundle / "model/config.json").unlink()
    refused = in_process("client", "bundle", "--verify", bundle)
    assert refused.returncode == 2 and "model/config.json is missing (copy the bundle again)" in refused.stderr


def test_the_digest_of_the_sums_tells_one_bundle_from_another(tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("1")
    first = write_sums(tmp_path)
    assert check_sums(tmp_path) == first
    (tmp_path / "a b").write_text("2")
    assert write_sums(tmp_path) != first
    with pytest.raises(ConfigError, match="no SHA256SUMS"):
        check_sums(tmp_path / "nowhere")


def test_the_board_s_own_torch_is_in_nobody_s_way(tmp_path: Path) -> None:
    registry, wheels = tmp_path / "registry", tmp_path / "wheels"
    a_wheel(registry, "leaf", needs="torch>=2.4,<3")
    a_wheel(registry, "torch", "2.13.0", needs="cuda-for-servers")
    own = a_wheel(tmp_path / "own", "fedkrso", "0.1.0", needs="leaf")
    wheels.mkdir()
    options = {"own": own, "extras": "", "torch": None, "system_torch": False}
    with pytest.raises(RunError, match="cuda-for-servers"):
        fetch_wheels(wheels, this_machine(), OfflinePip(registry), **options)  # type: ignore[arg-type]
    fetch_wheels(wheels, this_machine(), OfflinePip(registry), **{**options, "system_torch": True})  # type: ignore[arg-type]
    assert sorted(path.name.split("-")[0] for path in wheels.iterdir()) == ["fedkrso", "leaf"]
    theirs = a_wheel(tmp_path / "nvidia", "torch", "2.5.0a0+872d972e41.nv24.8")
    fetch_wheels(wheels, this_machine(), OfflinePip(registry), **{**options, "torch": theirs})  # type: ignore[arg-type]
    assert (wheels / theirs.name).read_bytes() == theirs.read_bytes()
    lines = requirements(wheels).splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "fedkrso==0.1.0",
        "leaf==1.0",
        "torch==2.5.0a0+872d972e41.nv24.8",
    ]
    with pytest.raises(ConfigError, match="not a wheel of torch"):
        fetch_wheels(wheels, this_machine(), OfflinePip(registry), **{**options, "torch": own})  # type: ignore[arg-type]


def test_wheels_are_those_of_the_board(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for tag in (
        "cp310-cp310-manylinux_2_34_aarch64",
        "cp310-cp310-manylinux2014_x86_64",
        "cp312-cp312-manylinux2014_aarch64",
    ):
        a_wheel(registry, "leaf", tag=tag)
    own = a_wheel(tmp_path / "own", "fedkrso", "0.1.0", needs="leaf")
    options = {"own": own, "extras": "", "torch": None, "system_torch": False}
    found = {}
    for name in ("jetpack-6", "jetpack-7", "ubuntu-22.04"):
        (tmp_path / name).mkdir()
        fetch_wheels(tmp_path / name, TARGETS[name], OfflinePip(registry), **options)  # type: ignore[arg-type]
        found[name] = next((tmp_path / name).glob("leaf-*")).name.partition("-1.0-")[2]
    assert found == {
        "jetpack-6": "cp310-cp310-manylinux_2_34_aarch64.whl",
        "jetpack-7": "cp312-cp312-manylinux2014_aarch64.whl",
        "ubuntu-22.04": "cp310-cp310-manylinux2014_x86_64.whl",
    }
    with pytest.raises(RunError, match="leaf"):
        fetch_wheels(tmp_path / "own", Target("3.10", "aarch64", 31), OfflinePip(registry), **options)  # type: ignore[arg-type]


def test_wrong_calls(provisioned: ProvisionedNode, tmp_path: Path) -> None:
    refused = in_process("client", "bundle", tmp_path / "b", "--from", provisioned.node, "--target", "toaster")
    assert refused.returncode == 2 and "one of jetpack-6" in refused.stderr
    assert (
        "where on the board"
        in in_process("client", "bundle", tmp_path / "b", "--from", provisioned.node, "--data", "mine.csv").stderr
    )
    assert "--from" in in_process("client", "bundle", tmp_path / "b").stderr
    refused = in_process("client", "bundle", provisioned.model, "--from", provisioned.node, "--light")
    assert refused.returncode == 2 and "something is there already" in refused.stderr
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProvisionedNode, Path]:
    provisioned = make_provisioned_node(tmp_path_factory.mktemp("kitchen"))
    folder = provisioned.root.parent / "bundle"
    done = in_process(
        "client",
        "bundle",
        folder,
        "--light",
        "--from",
        provisioned.node,
        "--run",
        "reviews",
        "--model",
        provisioned.model,
        "--data",
        provisioned.data,
    )
    assert done.returncode == 0, done.stderr
    assert "sha256 of SHA256SUMS" in done.stdout
    return provisioned, folder


@pytest.mark.chaos
class TestOnABoard:
    """A light bundle of the real program, made with the registry and installed without it."""

    def install(self, folder: Path, prefix: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """In an empty environment, and where we may in a name space without a network."""
        alone = ["unshare", "--net", "--"] if os.geteuid() == 0 and shutil.which("unshare") else []
        clean = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "FEDKRSO_PREFIX": str(prefix),
            "FEDKRSO_PYTHON": sys.executable,
            **environment,
        }
        return subprocess.run(
            [*alone, str(folder / "install.sh"), *flags], env=clean, capture_output=True, text=True, timeout=300
        )

    def test_it_is_installed_without_a_network(self, light: tuple[ProvisionedNode, Path], tmp_path: Path) -> None:
        provisioned, folder = light
        copy = tmp_path / "stick"
        shutil.copytree(folder, copy)
        for path in copy.rglob("*.key"):
            path.chmod(0o777)
        done = self.install(copy, tmp_path / "opt", FEDKRSO_ONLY_PROGRAM="1")
        assert done.returncode == 0, done.stdout + done.stderr
        program = tmp_path / "opt/bin/fedkrso"
        shown = subprocess.run([program, "--help"], env={}, capture_output=True, text=True, cwd=tmp_path)
        assert shown.returncode == 0 and "client" in shown.stdout
        # The service from the stick, into a folder that stands for the board.
        flags = [
            "client",
            "install",
            "--from",
            str(copy / "node"),
            "--copy-model",
            "--budget",
            "1GiB",
            "--root",
            str(provisioned.root),
        ]
        put = subprocess.run(
            [program, *flags, "--program", str(program)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
        )
        if os.geteuid() == 0 and shutil.which("systemd-sysusers"):
            assert put.returncode == 0, put.stderr
            assert provisioned.path("etc/fedkrso/signing.key").stat().st_mode & 0o077 == 0
            assert provisioned.path("var/lib/fedkrso/model/config.json").is_file()
            assert (
                f"ExecStart={program} client run"
                in provisioned.path("etc/systemd/system/fedkrso-client.service").read_text()
            )

    @pytest.mark.parametrize("name", ["wheels/click*", "node/node.toml", "install.sh", "SHA256SUMS"])
    def test_a_flipped_byte_is_found_before_anything_of_it_runs(
        self, light: tuple[ProvisionedNode, Path], tmp_path: Path, name: str
    ) -> None:
        _, folder = light
        copy = tmp_path / "stick"
        shutil.copytree(folder, copy)
        path = next(copy.glob(name))
        content = bytearray(path.read_bytes())
        # In the script: within a comment, so that it still runs.
        content[20 if name == "install.sh" else len(content) // 2] ^= 1
        path.write_bytes(content)
        done = self.install(copy, tmp_path / "opt", FEDKRSO_ONLY_PROGRAM="1")
        assert done.returncode == 2 and "the bundle is damaged (copy it again)" in done.stderr, done.stderr
        assert not (tmp_path / "opt").exists()

    def test_the_light_one_does_not_become_a_service_that_cannot_train(
        self, light: tuple[ProvisionedNode, Path], tmp_path: Path
    ) -> None:
        provisioned, folder = light
        done = self.install(folder, tmp_path / "opt", "--root", str(provisioned.root))
        assert done.returncode == 9 and "pip install 'fedkrso[train]'" in done.stderr
