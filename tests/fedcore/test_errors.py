# SPDX-License-Identifier: Apache-2.0
"""The exception tree: its picture in the docstring and `__all__` are those of the code."""

from __future__ import annotations

import re

import fedcore.errors
from fedcore.errors import FedkrsoError


def tree(kind: type[FedkrsoError] = FedkrsoError) -> list[type[FedkrsoError]]:
    """The class and all below it, as the module defines them."""
    own = [below for below in kind.__subclasses__() if below.__module__ == fedcore.errors.__name__]
    return [kind, *(found for below in own for found in tree(below))]


def drawn() -> dict[str, tuple[str, int]]:
    """Parent and exit code of each class in the docstring's picture."""
    found: dict[str, tuple[str, int]] = {}
    above: list[tuple[str, int]] = []
    for line in (fedcore.errors.__doc__ or "").splitlines():
        match = re.match(r"    (?P<stem>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: +(?P<code>\d+))?", line)
        if match is None:
            continue
        depth = len(match["stem"]) // 4
        parent, code = above[depth - 1] if depth else ("Exception", FedkrsoError.exit_code)
        entry = match["name"], int(match["code"] or code)
        above[depth:] = [entry]
        found[entry[0]] = parent, entry[1]
    return found


def test_the_docstring_draws_every_class_below_its_own_parent_with_its_exit_code() -> None:
    assert drawn() == {kind.__name__: (kind.__bases__[0].__name__, kind.exit_code) for kind in tree()}


def test_all_lists_every_class() -> None:
    assert sorted(kind.__name__ for kind in tree()) == fedcore.errors.__all__


def test_each_branch_has_an_exit_code_of_its_own() -> None:
    branches = FedkrsoError.__subclasses__()
    codes = [kind.exit_code for kind in branches if kind.__module__ == fedcore.errors.__name__]
    assert sorted(codes) == list(range(2, 2 + len(codes)))
