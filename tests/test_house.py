# SPDX-License-Identifier: Apache-2.0
"""The house's rules: imports run downwards only, also between rooms, every name in `__all__` exists, and files, folders
and lists of parameters are short."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedcore.methods import settings_by_name
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
MAY_BE_MISSING = HEAVY | {"hassil", "home_assistant_intents", "obstore", "psycopg", "tokenizers"}
MAY_IMPORT_HEAVY = (
    "edge_client/worker/",
    "edge_client/doctor/",
    "edge_client/commands/bench_memory.py",
    "examples/",
    # Short runs in one process, as in the experiment.
    "fedkrso/tuning/",
    "research/",
)
MOST_CONSTRUCTOR_PARAMETERS, MOST_PARAMETERS = 8, 10
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


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a function has, `self` and `cls` not counted, nor `*args` and `**kwargs`."""
    named = [*function.args.posonlyargs, *function.args.args]
    first = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - first + len(function.args.kwonlyargs)


def too_many(source: str) -> list[tuple[str, int]]:
    """Name and parameters of each constructor and function that has too many; a command's are its options."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            command = any(ast.unparse(decorator).startswith("click.command(") for decorator in node.decorator_list)
            most = MOST_CONSTRUCTOR_PARAMETERS if node.name == "__init__" else MOST_PARAMETERS
            if parameters(node) > most and not command:
                found.append((node.name, parameters(node)))
    return found


@pytest.mark.parametrize("package", [*MAY_IMPORT, "benchmarks"])
def test_constructors_and_functions_have_few_parameters(package: str) -> None:
    found = {name_of(path): too_many(path.read_text()) for path in (ROOT / package).rglob("*.py")}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_too_many_parameters_are_found() -> None:
    eight, eleven = ", ".join("abcdefgh"), ", ".join("abcdefghijk")
    assert too_many(f"class A:\n    def __init__(self, {eight}, *rest, **more): ...") == []
    assert too_many(f"class A:\n    def __init__(self, {eight}, *, i): ...") == [("__init__", 9)]
    assert too_many(f"def f({eleven}): ...") == [("f", 11)]
    assert too_many(f"@click.command()\n@click.option('--a')\ndef f({eleven}): ...") == []


def test_a_circle_is_found() -> None:
    rooms = frozenset("abcd")
    assert Floor("x", rooms, frozenset({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")})).circles() == [["a", "b", "c"]]
    assert Floor("x", rooms, frozenset({("a", "b"), ("a", "c"), ("b", "c")})).circles() == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_exported_names_exist_and_are_sorted(path: Path) -> None:
    if path.name in ("__main__.py",):
        pytest.skip("a program, not a module")
    if any((folder / "pyproject.toml").exists() for folder in path.parents if folder != ROOT):
        pytest.skip("of a project of its own, which is installed to be imported")
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # `make check-all` and a board with the agent alone; a whole environment has them all.
        if error.name not in MAY_BE_MISSING or find_spec("torch") is not None:
            raise
        pytest.skip(f"{error.name} is not installed")
    exported = getattr(module, "__all__", [])
    assert all(hasattr(module, entry) for entry in exported)
    assert sorted(exported, key=lambda entry: (not entry.isupper(), not entry[0].isupper(), entry)) == list(exported)


def public_names(path: Path) -> set[str]:
    """What a module defines under a name without an underscore; a type variable of one letter is nobody's business."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_") and len(name) > 1}


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__main__.py"], ids=name_of)
def test_every_public_name_is_exported(path: Path) -> None:
    if name_of(path).startswith("examples/"):
        pytest.skip("programs to read, not to import")
    exported: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            exported = set(ast.literal_eval(node.value))
    assert public_names(path) <= exported


def test_the_version_is_one_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(\d+\.\d+\.\d+)"$', project, re.MULTILINE)
    assert version is not None
    releases = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    # Before the first release there is no section; after it, the newest is what `fedkrso --version` says.
    assert releases[:1] in ([], [version[1]])


def test_every_test_that_the_security_table_names_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"::(test_\w+)", text))
    assert len(names) > 20
    assert {name for name in names if f"def {name}(" not in sources} == set()
    assert all((ROOT / path).is_file() for path in re.findall(r"tests/[\w/]+\.py", text))


def test_the_security_page_names_every_method_that_takes_no_rule_or_no_noise() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    rules = text.partition("Which methods take a rule")[2].partition("\n\nAnother rule")[0]
    noise = next(line for line in text.splitlines() if line.startswith("| refused |"))
    for name, kind in settings_by_name().items():
        assert f"`{name}`" in rules, name
        if kind().not_with_noise:
            assert f"`{name}`" in noise, name
