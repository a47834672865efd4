# SPDX-License-Identifier: Apache-2.0
"""An installation by the command, and what is left of it."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.edge_client.install.provisioned import ProvisionedNode, in_process


def install(provisioned: ProvisionedNode, *flags: object) -> str:
    done = in_process("client", "install", "--root", provisioned.root, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mode_and_owner(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return f"{stat.S_IMODE(found.st_mode):04o}", found.st_uid, found.st_gid


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".pwd")
    }


def refused(code: int, match: str, *arguments: object) -> None:
    done = in_process("client", "install", *arguments)
    assert done.returncode == code, done.stderr
    assert match in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
