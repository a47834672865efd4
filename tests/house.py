# SPDX-License-Identifier: Apache-2.0
"""The house's map: which rooms there are, which imports which, and whether any two import each other in a circle. `make
house` prints it.

A floor is a top-level package. A room is what somebody sees who opens a floor: a folder, or a file that lies directly
in it. An arrow is a room that imports another one of its floor. `edge_client/worker` is a floor of its own: another
process, with torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("fedkrso", "fedcore", "devices", "edge_client", "edge_client/worker", "coordinator", "research", "examples")
"""Each with what it may import said in `test_house.py`."""
MOST_FILES, MOST_LINES = 15, 350

Arrow = tuple[str, str]


@dataclass(frozen=True)
class Floor:
    """A floor's rooms, and the arrows between them.

    Attributes:
        name: Its folder.
        rooms: Names of folders, and of files without their ending.
        arrows: (importing room, imported room).
    """

    name: str
    rooms: frozenset[str]
    arrows: frozenset[Arrow]

    def circles(self) -> list[list[str]]:
        """Groups of rooms that can reach each other, each sorted; none in a house that is built from the ground up."""
        reach = {room: self._reachable(room) for room in self.rooms}
        groups = {frozenset({room, *(other for other in reach[room] if room in reach[other])}) for room in self.rooms}
        return sorted(sorted(group) for group in groups if len(group) > 1)

    def _reachable(self, room: str) -> set[str]:
        seen: set[str] = set()
        ahead = [room]
        while ahead:
            here = ahead.pop()
            found = {to for start, to in self.arrows if start == here} - seen
            seen |= found
            ahead += found
        return seen


def modules(floor: str, root: Path = ROOT) -> Iterator[Path]:
    """Every Python file of a floor, without those of a floor inside it."""
    inner = [root / other for other in FLOORS if other.startswith(f"{floor}/")]
    for path in sorted((root / floor).rglob("*.py")):
        if not any(path.is_relative_to(folder) for folder in inner):
            yield path


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it; `from a import b` counts as `a.b` too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def floor_of(name: str, root: Path = ROOT) -> Floor:
    """Read a floor."""
    package = name.replace("/", ".")
    folder = root / name
    rooms: set[str] = set()
    arrows: set[Arrow] = set()
    for path in modules(name, root):
        here = path.relative_to(folder).parts[0].removesuffix(".py")
        rooms.add(here)
        for target in imported(path):
            if not target.startswith(f"{package}."):
                continue
            there = target.removeprefix(f"{package}.").split(".")[0]
            if there != here:
                arrows.add((here, there))
    rooms.discard("__init__")
    # What is no room of this floor is a name in its `__init__`, or a floor inside it.
    return Floor(name, frozenset(rooms), frozenset((here, there) for here, there in arrows if {here, there} <= rooms))


def code_folders(root: Path = ROOT) -> dict[str, list[Path]]:
    """Every folder with code, tests too, and its files but `__init__.py`."""
    found: dict[str, list[Path]] = {}
    for top in ("benchmarks", "tests", *(floor for floor in FLOORS if "/" not in floor)):
        for path in sorted((root / top).rglob("*.py")):
            if path.name != "__init__.py":
                found.setdefault(str(path.parent.relative_to(root)), []).append(path)
    return found


def main() -> None:
    """Print the map as a table."""
    print(f"{'floor':20} {'rooms':>6} {'arrows':>7} {'circles':>8}")
    for name in FLOORS:
        if not (ROOT / name).is_dir():
            continue
        floor = floor_of(name)
        print(f"{name:20} {len(floor.rooms):6} {len(floor.arrows):7} {len(floor.circles()):8}")
        for circle in floor.circles():
            print(f"    circle: {', '.join(circle)}")
    folders = code_folders()
    name, files = max(folders.items(), key=lambda item: len(item[1]))
    lines = {path: path.read_text(encoding="utf-8").count("\n") for found in folders.values() for path in found}
    longest = max(lines, key=lambda path: lines[path])
    print(f"largest folder: {name}, {len(files)} files (at most {MOST_FILES})")
    print(f"longest file: {longest.relative_to(ROOT)}, {lines[longest]} lines (at most {MOST_LINES})")


if __name__ == "__main__":
    main()
