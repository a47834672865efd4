# SPDX-License-Identifier: Apache-2.0
"""Where a process stands in the memory cgroups: version 2, version 1's memory controller (JetPack 5), both, or none.

`/proc/<pid>/cgroup` says the path inside the hierarchy, `/proc/<pid>/mountinfo` where that hierarchy is mounted and
which of its folders the mount shows: in a container the mount's root is the container's own cgroup, and the path is
relative to it or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["MemoryCgroup", "memory_cgroup", "number"]

# Version 1 writes "no limit" as the largest multiple of a page below 2^63.
_NO_LIMIT_BYTES = 2**62


@dataclass(frozen=True)
class MemoryCgroup:
    """A cgroup that accounts memory.

    Attributes:
        version: Of the interface; file names differ.
        folder: Its folder.
        top: Where the hierarchy is mounted; ancestors beyond it cannot be seen.
    """

    version: Literal[1, 2]
    folder: Path
    top: Path

    @property
    def ancestors(self) -> tuple[Path, ...]:
        """Its own folder and those above it, up to the mount."""
        inside = [self.folder, *self.folder.parents]
        return tuple(inside[: inside.index(self.top) + 1]) if self.top in inside else (self.folder,)


def memory_cgroup(pid: int | str = "self", root: Path = Path("/")) -> MemoryCgroup | None:
    """The cgroup in which a process' memory is accounted, or None.

    Version 1's memory controller goes before version 2: in a hybrid set-up the controller is in only one of them.
    """
    try:
        lines = (root / "proc" / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc" / str(pid) / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        number_text, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _placed(1, path, mounts, root)
        if number_text == "0" and not any("memory" in other.split(":", 2)[1].split(",") for other in lines):
            found = _placed(2, path, mounts, root)
            if found is not None and "memory" in _words(found.folder / "cgroup.controllers"):
                return found
    return None


def number(path: Path) -> int | None:
    """The number in a cgroup file; None for no file, `max`, or version 1's largest number."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT_BYTES else None


def _placed(version: Literal[1, 2], path: str, mounts: list[str], root: Path) -> MemoryCgroup | None:
    for line in mounts:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        wanted = kind[0] == "cgroup2" if version == 2 else kind[0] == "cgroup" and "memory" in kind[2].split(",")
        if not wanted:
            continue
        # The kernel writes a space in a path as \040.
        mount_root, mount_point = (field.replace("\\040", " ") for field in fields[3:5])
        top = root / mount_point.lstrip("/")
        # With a cgroup namespace the path is seen from the mount's root; without one it begins with it.
        inside = path[len(mount_root) :] if mount_root != "/" and f"{path}/".startswith(f"{mount_root}/") else path
        folder = top / inside.lstrip("/")
        return MemoryCgroup(version, folder if folder.is_dir() else top, top)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
