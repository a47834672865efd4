# SPDX-License-Identifier: Apache-2.0
"""Wheels of other versions of fedkrso, made of the one that the checkout builds."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from edge_client.install.wheels import _sources

__all__ = ["built", "other_version", "sha256"]


def built(checkout: Path, folder: Path) -> Path:
    """The checkout's wheel, with the setuptools of this environment."""
    sources = _sources(checkout, folder / "sources")
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=sources, capture_output=True, timeout=300, check=True)
    return next(folder.glob("fedkrso-*.whl"))


def other_version(wheel: Path, version: str, changes: Mapping[str, str] = {}) -> Path:
    """The same under another number, beside it; `changes` put another text in place of a file's."""
    old = wheel.name.split("-")[1]
    made = wheel.with_name(wheel.name.replace(old, version))
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".dist-info/METADATA"):
                data = data.replace(f"\nVersion: {old}\n".encode(), f"\nVersion: {version}\n".encode(), 1)
            data = changes[name].encode() if name in changes else data
            if name.endswith(".dist-info/RECORD"):
                # Without sums, which a record may leave out.
                lines = [line.split(",")[0].replace(old, version) + ",," for line in data.decode().splitlines()]
                data = "\n".join(lines).encode()
            target.writestr(name.replace(f"fedkrso-{old}.dist-info", f"fedkrso-{version}.dist-info"), data)
    return made


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
