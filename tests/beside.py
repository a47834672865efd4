# SPDX-License-Identifier: Apache-2.0
"""Packages of somebody else, installed beside for the processes that a test starts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["install"]


def install(source: Path, folder: Path) -> Path:
    """Install the one package of a project into a folder, which belongs on PYTHONPATH, as a package manager would: files
    and entry points."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    name = project["name"].replace("-", "_")
    shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / f"{name}-{project['version']}.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    about.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
