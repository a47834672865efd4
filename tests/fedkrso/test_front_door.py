# SPDX-License-Identifier: Apache-2.0
"""The front door: what it names is there, what it loads is light, and a whole run goes through it on real parts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedkrso

LIGHT = """
import sys
import fedkrso
assert not {"torch", "numpy", "msgspec", "paho"} & sys.modules.keys(), sys.modules.keys()
fedkrso.Client, fedkrso.Node, fedkrso.load
assert not {"torch", "numpy"} & sys.modules.keys()
"""


def test_it_loads_neither_torch_nor_numpy() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True, timeout=300)


def test_every_name_is_there_and_documented() -> None:
    for name in fedkrso.__all__:
        found = getattr(fedkrso, name)
        assert found.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = fedkrso.Clinet


def test_types_say_the_same_as_what_is_loaded() -> None:
    tree = ast.parse(Path(fedkrso.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: f"{node.module}{f':{alias.name}' if alias.asname else ''}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == fedkrso._WHERE and sorted(typed) == sorted(fedkrso.__all__)


def test_python_m_fedkrso_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fedkrso", "--version"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and fedkrso.__version__ in done.stdout
