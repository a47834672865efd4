# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source distribution: what is in them, what they ask for, and what a fresh environment without a
checkout can do."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from edge_client.install.wheels import _sources

REPOSITORY = Path(__file__).resolve().parents[2]
LIGHT = {
    "click",
    "msgpack",
    "msgspec",
    "paho-mqtt",
    "psutil",
    "pynacl",
    "cffi",
    "pycparser",
    "systemd-watchdog",
    "tomlkit",
}
# Beyond these an agent's board has other worries than ours.
_MOST_LIGHT_BYTES = 20_000_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's packages in a folder that a build may write to."""
    return _sources(REPOSITORY, tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build(f"build_wheel({str(folder)!r})", sources)
    return next(folder.glob("fedkrso-*.whl"))


def build(call: str, sources: Path) -> None:
    """With the setuptools of this environment: tests must not need a registry."""
    command = [sys.executable, "-c", f"from setuptools import build_meta; build_meta.{call}"]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def files_of_the_checkout() -> set[str]:
    """Everything in the packages that is no cache and no reading matter."""
    packages = [
        path.parent for path in REPOSITORY.glob("*/__init__.py") if path.parent.name not in ("tests", "examples")
    ]
    found = {
        path
        for package in packages
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and (path.suffix != ".md" or "templates" in path.parts)
    }
    return {path.relative_to(REPOSITORY).as_posix() for path in found}


def test_the_wheel_has_every_file_of_the_packages_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == files_of_the_checkout()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert {
        "fedcore/py.typed",
        "edge_client/install/templates/install.sh",
        "coordinator/reports/templates/report.html",
    } <= names


def test_the_source_distribution_builds_the_same_wheel(sources: Path, wheel: Path, tmp_path: Path) -> None:
    build(f"build_sdist({str(tmp_path)!r})", sources)
    archive = next(tmp_path.glob("fedkrso-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    build(f"build_wheel({str(tmp_path)!r})", tmp_path / archive.name.removesuffix(".tar.gz"))
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as other:
        assert {(entry.filename, entry.CRC) for entry in one.infolist()} == {
            (entry.filename, entry.CRC) for entry in other.infolist()
        }


def test_what_the_wheel_asks_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    asked = metadata.get_all("Requires-Dist") or []
    light = {line.split(";")[0].rstrip("=<>,.0123456789 ") for line in asked if "extra ==" not in line}
    assert {name.partition(">")[0].partition("<")[0] for name in light} <= LIGHT | {"tomli"}
    torch = [line for line in asked if line.startswith("torch")]
    assert (
        len(torch) == 1
        and "==" not in torch[0].split(";")[0]
        and "<" not in torch[0]
        and 'extra == "train"' in torch[0]
    ), "a Jetson brings its own torch"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.10"


def pip(environment: Path, *arguments: str) -> str:
    constraints = ("--constraint", str(REPOSITORY / "constraints.txt")) if arguments[0] == "install" else ()
    command = [
        environment / "bin/python",
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *arguments,
        *constraints,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    pip(folder, "install", str(wheel))
    return folder


@pytest.mark.chaos
class TestAFreshEnvironment:
    """No checkout on the path, nothing but the wheel; needs a package registry."""

    def fedkrso(self, environment: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
        command = [str(environment / "bin/fedkrso"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=environment, env=clean)

    def test_the_light_form_is_light(self, environment: Path) -> None:
        names = {line.partition("==")[0].lower() for line in pip(environment, "list", "--format=freeze").splitlines()}
        assert names - {"pip", "setuptools", "wheel"} <= LIGHT | {"fedkrso", "tomli"}
        packages = next((environment / "lib").glob("python*/site-packages"))
        ours = [path for path in packages.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        size = sum(
            path.stat().st_size
            for path in ours
            if path.relative_to(packages).parts[0].split("-")[0] not in ("pip", "setuptools")
        )
        assert size <= _MOST_LIGHT_BYTES, f"{size / 1e6:.1f} MB"

    def test_the_command_and_every_subcommand_have_help(self, environment: Path) -> None:
        shown = self.fedkrso(environment, "--help")
        assert shown.returncode == 0 and "coordinator" in shown.stdout and "Exit codes" in shown.stdout
        listed = "from importlib.metadata import entry_points as e; print('\\n'.join(p.name for p in e(group='fedkrso.commands')))"
        names = subprocess.run(
            [environment / "bin/python", "-c", listed], capture_output=True, text=True, cwd=environment
        ).stdout.splitlines()
        assert len(names) > 15
        for name in names:
            done = self.fedkrso(environment, *name.split(), "--help")
            light = name in ("doctor", "profile") or name.startswith(("client ", "model "))
            extra = "pip install 'fedkrso[coordinator]'"
            assert done.returncode == 0 or (not light and done.returncode == 2 and extra in done.stderr), (
                f"{name}: {done.stderr}"
            )
            assert "Traceback" not in done.stderr

    def test_it_refuses_to_train_with_one_line(self, environment: Path, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/config.json").write_text("{}")
        node = tmp_path / "node.toml"
        node.write_text(
            'node = "n"\nrun = "r"\nmodel_folder = "model"\n[data]\nsource = "x.csv"\n[broker]\nurl = "mqtts://127.0.0.1:9"\n'
        )
        assert self.fedkrso(environment, "client", "run", node, "--check").returncode == 0
        done = self.fedkrso(environment, "client", "run", node)
        assert (
            done.returncode == 9
            and len(done.stderr.splitlines()) == 1
            and "pip install 'fedkrso[train]'" in done.stderr
        )

    def test_the_coordinator_s_commands_name_their_extra(self, environment: Path, tmp_path: Path) -> None:
        done = self.fedkrso(environment, "provision", "r", "n", "--out", tmp_path / "fleet", "--broker-host", "h")
        assert (
            done.returncode == 2
            and len(done.stderr.splitlines()) == 1
            and "pip install 'fedkrso[coordinator]'" in done.stderr
        )
        done = self.fedkrso(environment, "bench", "aggregate")
        assert done.returncode == 2 and "pip install 'fedkrso[coordinator]'" in done.stderr, done.stderr

    @pytest.mark.timeout(1800)
    def test_with_the_training_packages_a_run_works(self, environment: Path, wheel: Path, tmp_path: Path) -> None:
        """The demo on the wheel: its own broker, coordinator and homes, with real weights."""
        pip(environment, "install", f"{wheel}[demo]")
        command = [
            str(environment / "bin/python"),
            "-m",
            "examples.voice_intents.demo",
            "--rounds",
            "1",
            "--homes",
            "2",
            "--runs",
            str(tmp_path),
        ]
        shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
        clean = {"PATH": "/usr/sbin:/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=clean)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert list(tmp_path.glob("*/summary.json")) and "Traceback" not in done.stderr
