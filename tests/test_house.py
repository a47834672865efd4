# SPDX-License-Identifier: Apache-2.0
"""The house's rules: imports run downwards only, also between rooms, and every name in `__all__` exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.house import FLOORS, MOST_FILES, MOST_LINES, ROOT, Floor, code_folders, floor_of, imported

MAY_IMPORT = {
    "fedcore": {"fedcore"},
    "devices": {"devices", "fedcore"},
    "coordinator": {"coordinator", "fedcore"},
    "edge_client": {"edge_client", "devices", "fedcore"},
    "fedkrso": {"fedkrso", "coordinator", "edge_client", "devices", "fedcore"},
    "research": {"research", "coordinator", "edge_client", "devices", "fedcore"},
    "examples": {"examples", "fedkrso", "coordinator", "edge_client", "devices", "fedcore"},
}
HEAVY = {"torch", "transformers", "bitsandbytes"}
MAY_IMPORT_HEAVY = (
    "edge_client/worker/",
    "edge_client/doctor/",
    "edge_client/commands/bench_memory.py",
    "examples/",
    "research/",
)
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots & MAY_IMPORT.keys() <= MAY_IMPORT[package]
    if not name_of(path).startswith(MAY_IMPORT_HEAVY):
        assert not roots & HEAVY


@pytest.mark.parametrize("name", FLOORS)
def test_rooms_import_each_other_in_no_circle(name: str) -> None:
    assert floor_of(name).circles() == []


def test_folders_are_small_and_files_short() -> None:
    folders = code_folders()
    assert {folder: len(files) for folder, files in folders.items() if len(files) > MOST_FILES} == {}
    lines = {name_of(path): path.read_text().count("\n") for files in folders.values() for path in files}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_a_circle_is_found() -> None:
    rooms = frozenset("abcd")
    assert Floor("x", rooms, frozenset({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")})).circles() == [["a", "b", "c"]]
    assert Floor("x", rooms, frozenset({("a", "b"), ("a", "c"), ("b", "c")})).circles() == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_exported_names_exist_and_are_sorted(path: Path) -> None:
    if path.name in ("__main__.py",):
        pytest.skip("a program, not a module")
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert all(hasattr(module, entry) for entry in exported)
    assert sorted(exported, key=lambda entry: (not entry.isupper(), not entry[0].isupper(), entry)) == list(exported)


def test_every_test_that_the_security_table_names_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"::(test_\w+)", text))
    assert len(names) > 20
    assert {name for name in names if f"def {name}(" not in sources} == set()
    assert all((ROOT / path).is_file() for path in re.findall(r"tests/[\w/]+\.py", text))
