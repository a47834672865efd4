# SPDX-License-Identifier: Apache-2.0
"""Registries: names, duplicates, latecomers, and the nearest name where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedcore.errors import ConfigError
from fedcore.registry import CODECS, DEVICES, METHODS, METRICS, TASKS, Registry, resolve


def a_function() -> int:
    return 1


def fresh() -> Registry[object]:
    registry: Registry[object] = Registry("colour", "example.colours")
    registry.register("red")(a_function)
    return registry


def test_what_is_registered_is_given_back_and_found() -> None:
    registry = fresh()
    assert registry.register("blue")(int) is int
    assert registry.get("red") is a_function and registry.names() == ("red", "blue")


def test_a_name_is_given_once_and_both_places_are_named() -> None:
    with pytest.raises(ConfigError) as found:
        fresh().register("red")(int)
    assert found.value.one_line() == (
        f"builtins:int: two colours are named 'red': the first is {__name__}:a_function (give one of them another name)"
    )


def test_a_latecomer_is_refused() -> None:
    registry = fresh()
    assert [name for name, _ in registry.close("the picture is painted")] == ["red"]
    with pytest.raises(ConfigError, match=r"colour 'blue' is registered too late: the picture is painted"):
        registry.register("blue")(int)


@pytest.mark.parametrize(
    ("registry", "wrong", "near"),
    [
        (METHODS, "fedkros", "method 'fedkros' (did you mean 'fedkrso'?)"),
        (TASKS, "text-clasification", "task 'text-clasification' (did you mean 'text-classification'?)"),
        (METRICS, "mathews", "metric 'mathews' (did you mean 'matthews'?)"),
        (CODECS, "sparce", "payload codec 'sparce' (did you mean 'sparse'?)"),
        (DEVICES, "jetsen", "device 'jetsen' (did you mean 'jetson'?)"),
    ],
    ids=lambda value: value.kind if isinstance(value, Registry) else None,
)
def test_an_unknown_name_gives_the_nearest(registry: Registry[object], wrong: str, near: str) -> None:
    with pytest.raises(ConfigError) as found:
        registry.get(wrong, place="here")
    assert found.value.one_line() == f"here: no {near}"


def test_what_is_named_is_resolved() -> None:
    assert resolve(f"{Registry.__module__}:Registry") is Registry
    with pytest.raises(ConfigError, match=r"fedcore.registry has no 'Registri' \(did you mean 'Registry'\?\)"):
        resolve("fedcore.registry:Registri")
    with pytest.raises(ConfigError, match="no_such_module:x cannot be imported"):
        resolve("no_such_module:x")


def test_registries_load_nothing_heavy_by_themselves() -> None:
    program = """
import sys
from fedcore.registry import METHODS, TASKS
assert METHODS.names() and TASKS.names()
print(sorted({"numpy", "torch", "coordinator", "edge_client"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
