# SPDX-License-Identifier: Apache-2.0
"""The program whose time is measured is text: what it imports must be there under that name."""

from __future__ import annotations

import ast
import importlib

from benchmarks.waiting import seconds


def test_the_measured_program_imports_what_there_is() -> None:
    asked = [node for node in ast.walk(ast.parse(seconds._TRACE)) if isinstance(node, ast.ImportFrom)]
    assert len(asked) > 3
    for node in asked:
        module = importlib.import_module(str(node.module))
        assert [one.name for one in node.names if not hasattr(module, one.name)] == []
