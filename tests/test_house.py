# SPDX-License-Identifier: Apache-2.0
"""The house's rules: imports run downwards only, and every name in `__all__` exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "fedcore": {"fedcore"},
    "devices": {"devices", "fedcore"},
    "coordinator": {"coordinator", "fedcore"},
    "edge_client": {"edge_client", "devices", "fedcore"},
    "examples": {"examples", "coordinator", "edge_client", "devices", "fedcore"},
}
WITH_TORCH = ("doctor.py", "bench_memory.py", "experiment.py", "informing.py", "one.py")
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots & MAY_IMPORT.keys() <= MAY_IMPORT[package]
    if "worker" not in path.relative_to(ROOT).parts and path.name not in WITH_TORCH:
        assert not roots & {"torch", "transformers", "bitsandbytes"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
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
