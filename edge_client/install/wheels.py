# SPDX-License-Identifier: Apache-2.0
"""The wheels that a board without internet needs, fetched by pip for that board's Python, processor and C library."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edge_client.install.machine import Runner
from edge_client.install.manifest import file_sha256
from fedcore.errors import ConfigError, RunError

__all__ = ["TARGETS", "Target", "fetch_wheels", "requirements", "this_machine"]

# Stands for the board's own torch while pip works out the rest; above every real one, so that no requirement is in its
# way.
_STAND_IN = "2.999+board"
_OLDEST_GLIBC = 17


@dataclass(frozen=True)
class Target:
    """A kind of board.

    Attributes:
        python: Its Python, such as `3.10`.
        machine: Its processor, as `uname -m` says it.
        glibc: Minor version of its C library 2.x.
    """

    python: str
    machine: str
    glibc: int

    @property
    def platforms(self) -> tuple[str, ...]:
        """Tags of wheels that run there, the plain one of self-made wheels among them."""
        legacy = {17: "manylinux2014"}
        newest_first = range(self.glibc, _OLDEST_GLIBC - 1, -1)
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in newest_first]
        return (*tags, *(f"{name}_{self.machine}" for name in legacy.values()), f"linux_{self.machine}")


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "jetpack-6": Target("3.10", "aarch64", 35),
        "jetpack-7": Target("3.12", "aarch64", 39),
        "raspberry-pi-os-12": Target("3.11", "aarch64", 36),
        "ubuntu-22.04": Target("3.10", "x86_64", 35),
        "ubuntu-24.04": Target("3.12", "x86_64", 39),
        "debian-12": Target("3.11", "x86_64", 36),
    }
)


def this_machine() -> Target:
    """The machine that this runs on.

    Raises:
        ConfigError: It has no glibc, so a board like it cannot be described here.
    """
    found = re.fullmatch(r"2\.(\d+)", platform.libc_ver()[1])
    if found is None:
        raise ConfigError(
            "this machine is no board with glibc", place="--target", remedy=f"write one of {', '.join(TARGETS)}"
        )
    return Target(f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine(), int(found.group(1)))


def fetch_wheels(
    folder: Path,
    target: Target,
    runner: Runner,
    *,
    own: Path | None,
    extras: str,
    torch: Path | None,
    system_torch: bool,
) -> None:
    """Fill a folder with wheels for a board: ours, and everything that it needs.

    Args:
        folder: Empty.
        target: The board.
        runner: Calls pip.
        own: Our own wheel; without it, it is built from the checkout that this runs from, or fetched.
        extras: `train`, or nothing for an agent alone.
        torch: The board's own wheel of torch.
        system_torch: The board has torch already.

    Raises:
        RunError: pip could not get them.
    """
    _own_wheel(folder, own, runner)
    ours = next(folder.glob("fedkrso-*.whl"))
    with tempfile.TemporaryDirectory() as beside:
        links, constraints = Path(beside) / "links", Path(beside) / "constraints.txt"
        links.mkdir()
        pinned = None
        if system_torch:
            pinned = _STAND_IN
            _stand_in(links)
        elif torch is not None:
            pinned = _version(torch)
            (links / torch.name).write_bytes(torch.read_bytes())
        constraints.write_text(f"torch=={pinned}\n" if pinned else "", encoding="utf-8")
        wanted = f"{ours}[{extras}]" if extras else str(ours)
        there = [part for tag in target.platforms for part in ("--platform", tag)]
        _pip(
            runner,
            "download",
            "--dest",
            str(folder),
            "--only-binary=:all:",
            "--find-links",
            str(links),
            "--constraint",
            str(constraints),
            "--python-version",
            target.python,
            "--implementation",
            "cp",
            *there,
            wanted,
        )
    for stand_in in folder.glob(f"torch-{_STAND_IN}-*.whl"):
        stand_in.unlink()


def requirements(folder: Path) -> str:
    """What pip is to install from a folder of wheels: exactly these files, each with its hash."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name.replace('_', '-').lower()}=={version} --hash=sha256:{file_sha256(wheel)}\n")
    return "".join(lines)


def _own_wheel(folder: Path, own: Path | None, runner: Runner) -> None:
    if own is not None:
        (folder / own.name).write_bytes(own.read_bytes())
        return
    checkout = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as beside:
        source = f"fedkrso=={importlib.metadata.version('fedkrso')}"
        if (checkout / "pyproject.toml").is_file():
            # Built in place, a checkout would give what earlier builds left there too.
            source = str(_sources(checkout, Path(beside)))
        try:
            _pip(runner, "wheel", "--no-deps", "--wheel-dir", str(folder), source)
        except RunError as error:
            raise RunError(
                error.message, place="fedkrso's own wheel", remedy="give it: --wheel fedkrso-VERSION-py3-none-any.whl"
            ) from None


def _sources(checkout: Path, target: Path) -> Path:
    for path in checkout.iterdir():
        if (path / "__init__.py").is_file():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file() and (path.suffix in (".toml", ".md", ".in") or path.name == "LICENSE"):
            shutil.copy2(path, target / path.name)
    return target


def _pip(runner: Runner, *arguments: str) -> None:
    called = runner((sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments))
    if called.code != 0:
        raise RunError(
            _why(called.output.splitlines()),
            place=f"pip {arguments[0]}",
            remedy="check the network, or take another --target",
        )


def _why(lines: list[str]) -> str:
    """Of what pip said, the line that names what is missing or does not agree, not the one that names pip's manual."""
    errors = [
        line.removeprefix("ERROR: ")
        for line in lines
        if line.startswith("ERROR") and "ResolutionImpossible" not in line
    ]
    missing = [line for line in errors if line.startswith("No matching distribution")]
    return (missing or errors or lines or ["no word"])[-1]


def _stand_in(folder: Path) -> None:
    """A wheel of torch with nothing in it."""
    info = f"torch-{_STAND_IN}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{_STAND_IN}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {_STAND_IN}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: fedkrso\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def _version(wheel: Path) -> str:
    parts = wheel.name.removesuffix(".whl").split("-")
    if not wheel.is_file() or not wheel.name.endswith(".whl") or len(parts) < 5 or parts[0] != "torch":
        raise ConfigError(
            "not a wheel of torch",
            place=f"--torch-wheel: {wheel}",
            remedy="write torch-VERSION-....whl, as its maker named it",
        )
    return parts[1]
