# SPDX-License-Identifier: Apache-2.0
"""The order of an object's properties comes from the rows where they agree."""

from __future__ import annotations

import json
from typing import Any

from edge_client.worker.answering.order import PropertyOrder


def schema(*names: str, **inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: inner.get(name, {"type": "string"}) for name in names}}


def applied(rows: list[Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return json.loads(PropertyOrder(map(json.dumps, rows)).applied(json.dumps(wanted)))


def test_rows_that_agree_decide_also_inside() -> None:
    rows = [{"name": "on", "slots": {"area": 1, "floor": 2}}, {"name": "off", "slots": {"area": 1, "color": 3}}]
    wanted = schema("slots", "name", slots=schema("floor", "color", "area"))
    found = applied(rows, wanted)
    assert list(found["properties"]) == ["name", "slots"]
    assert list(found["properties"]["slots"]["properties"]) == ["area", "floor", "color"]
    assert found == wanted


def test_lists_and_choices_are_looked_into() -> None:
    rows = [[{"a": 1, "b": 2}], {"c": 1, "d": 2}]
    wanted = {"anyOf": [{"type": "array", "items": schema("b", "a")}, schema("d", "c")]}
    found = applied(rows, wanted)
    assert list(found["anyOf"][0]["items"]["properties"]) == ["a", "b"]
    assert list(found["anyOf"][1]["properties"]) == ["c", "d"]


def test_rows_that_disagree_or_say_nothing_decide_nothing() -> None:
    given = json.dumps(schema("b", "a"))
    spoken = [{"a": 1, "b": 2}, {"b": 1, "a": 2}]
    assert list(applied(spoken, schema("b", "a"))["properties"]) == ["b", "a"]
    assert PropertyOrder(["hello", "{broken", "[" * 10_000, "7"]).applied(given) == given
    nearly = [{"a": 1, "b": 2}] * 19 + [{"b": 1, "a": 2}]
    assert list(applied(nearly, schema("b", "a"))["properties"]) == ["a", "b"]


def test_an_order_that_goes_in_a_circle_decides_nothing() -> None:
    rows = [{"a": 1, "b": 1}, {"b": 1, "c": 1}, {"c": 1, "a": 1}]
    assert list(applied(rows, schema("c", "b", "a"))["properties"]) == ["c", "b", "a"]
