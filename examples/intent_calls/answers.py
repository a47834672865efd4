# SPDX-License-Identifier: Apache-2.0
"""Whether an answer is the right call: equality of the parsed JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["equality", "same_call"]

_NOTHING = object()


def same_call(said: str, right: str) -> bool:
    """Whether two texts are the same JSON: order of slots and spaces do not count, types do.

    >>> same_call('{"name": "HassMediaNext", "data": {}}', '{"data":{},"name":"HassMediaNext"}')
    True
    >>> same_call('{"data":{"brightness":"40"}}', '{"data":{"brightness":40}}')
    False
    >>> same_call("no JSON", "no JSON")
    False
    """
    parsed = _parsed(said)
    return parsed is not _NOTHING and _typed(parsed) == _typed(_parsed(right))


def equality(said: Sequence[str], right: Sequence[str]) -> float:
    """Share of answers that are the right call.

    >>> equality(['{"a":1}', "what?"], ['{"a": 1}', '{"a":2}'])
    0.5
    """
    return sum(map(same_call, said, right)) / len(right)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return _NOTHING


def _typed(value: Any) -> Any:
    """A value whose equality tells true from 1, which Python's does not."""
    if isinstance(value, dict):
        return {key: _typed(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_typed(own) for own in value]
    return type(value).__name__ if isinstance(value, bool) or value is None else None, value
