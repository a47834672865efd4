# SPDX-License-Identifier: Apache-2.0
"""In which order an object's properties are trained.

A structured answer has its properties in the order of the schema. A model that learned them in another order answers
worse then, so the order comes from the node's own rows where they agree on one. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

__all__ = ["PropertyOrder"]

_AGREED = 0.9
"""Of all rows that have both of two properties, how many have them in one order for it to count as theirs."""
_INSIDE = ("anyOf", "oneOf", "allOf")
_Place = tuple[str, ...]


class PropertyOrder:
    """What the answers in some rows say about order, object by object.

    Args:
        answers: Texts; those that are no JSON say nothing.

    Example:
        >>> order = PropertyOrder(['{"name": "turn_on", "area": "kitchen"}'])
        >>> order.applied('{"type":"object","properties":{"area":{"type":"string"},"name":{"type":"string"}}}')
        '{"type":"object","properties":{"name":{"type":"string"},"area":{"type":"string"}}}'
    """

    def __init__(self, answers: Iterable[str] = ()) -> None:
        self._before: Counter[tuple[_Place, str, str]] = Counter()
        for answer in answers:
            if answer.lstrip()[:1] in ("{", "["):
                try:
                    self._look(json.loads(answer), ())
                except (ValueError, RecursionError):
                    continue

    def __bool__(self) -> bool:
        """Whether it knows of any two properties."""
        return bool(self._before)

    def applied(self, schema: str) -> str:
        """A schema with its properties in the trained order; as it is where rows disagree, or say nothing."""
        if not self:
            return schema
        return json.dumps(self._schema(json.loads(schema), ()), separators=(",", ":"), ensure_ascii=False)

    def _look(self, value: Any, place: _Place) -> None:
        if isinstance(value, dict):
            for first, second in combinations(value, 2):
                self._before[place, first, second] += 1
            for name, inner in value.items():
                self._look(inner, (*place, name))
        elif isinstance(value, list):
            for inner in value:
                self._look(inner, (*place, "[]"))

    def _schema(self, schema: Any, place: _Place) -> Any:
        if not isinstance(schema, dict):
            return schema
        out = dict(schema)
        if isinstance(properties := schema.get("properties"), dict):
            names = self._ordered(list(properties), place)
            out["properties"] = {name: self._schema(properties[name], (*place, name)) for name in names}
        if "items" in schema:
            out["items"] = self._schema(schema["items"], (*place, "[]"))
        for key in _INSIDE:
            if isinstance(inside := schema.get(key), list):
                out[key] = [self._schema(one, place) for one in inside]
        return out

    def _ordered(self, names: Sequence[str], place: _Place) -> list[str]:
        """Names so that each comes after those that rows have before it; else as near to the given order as can be."""
        follows: dict[str, set[str]] = {name: set() for name in names}
        for one, other in combinations(names, 2):
            ahead, behind = self._before[place, one, other], self._before[place, other, one]
            if not ahead + behind:
                continue
            if max(ahead, behind) < _AGREED * (ahead + behind):
                return list(names)
            first, second = (one, other) if ahead > behind else (other, one)
            follows[second].add(first)
        out: list[str] = []
        while len(out) < len(names):
            ready = [name for name in names if name not in out and follows[name] <= set(out)]
            if not ready:
                return list(names)
            out.append(ready[0])
        return out
