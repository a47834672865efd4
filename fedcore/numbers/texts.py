# SPDX-License-Identifier: Apache-2.0
"""How right generated answers are: metrics of texts, each a number from 0 to 1 for every answer.

They take what the model answered and what is right, as lists of str of one length. White space around a text does not
count in any of them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedcore.registry import register_metric

__all__ = ["exact_match", "json_equality", "rouge_l", "same_json"]

_Values = NDArray[np.float64]
_Texts = Sequence[str]

_NOTHING: Final = object()


@register_metric("exact_match", compares="texts", each=True)
def exact_match(answers: _Texts, right: _Texts) -> _Values:
    """1 for each answer that is the right text.

    Example:
        >>> exact_match(["yes", " no"], ["yes", "nope"]).tolist()
        [1.0, 0.0]
    """
    return np.array([a.strip() == b.strip() for a, b in zip(answers, right, strict=True)], np.float64)


@register_metric("json_equality", compares="texts", each=True)
def json_equality(answers: _Texts, right: _Texts) -> _Values:
    """1 for each answer that is the right JSON.

    Example:
        >>> json_equality(['{"a":1, "b":[]}', "what?"], ['{"b": [], "a": 1}', "what?"]).tolist()
        [1.0, 0.0]
    """
    return np.array([same_json(a, b) for a, b in zip(answers, right, strict=True)], np.float64)


@register_metric("rouge_l", compares="texts", each=True)
def rouge_l(answers: _Texts, right: _Texts) -> _Values:
    """ROUGE-L of each answer: F1 of the longest common subsequence of words (Lin 2004).

    Words are Latin letters and digits, in lower case, without stemming, as in the package rouge-score, whose numbers
    these are. It is not used: it needs nltk, which takes 100 MB of a node's memory. A text without such words has 0.

    Example:
        >>> rouge_l(["The cat sat.", ""], ["the cat", "the cat"]).tolist()
        [0.8, 0.0]
    """
    return np.array([_rouge_l(a, b) for a, b in zip(answers, right, strict=True)], np.float64)


def _rouge_l(answer: str, right: str) -> float:
    said, wanted = (re.findall("[a-z0-9]+", text.lower()) for text in (answer, right))
    common = _common_words(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _common_words(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, by whole rows of its table as the bits of one integer (Hyyro 2004): a
    bit of `row` is zero where the row's length grows."""
    places: defaultdict[str, int] = defaultdict(int)
    for place, word in enumerate(one):
        places[word] |= 1 << place
    every = row = (1 << len(one)) - 1
    for word in other:
        met = row & places[word]
        row = (row + met | row - met) & every
    return len(one) - row.bit_count()


def same_json(said: str, right: str) -> bool:
    """Whether two texts are the same JSON: order of keys and white space do not count, types do. What cannot be parsed
    is nothing's equal.

    Example:
        >>> same_json('{"a": 1, "b": null}', '{"b":null,"a":1}'), same_json('{"a":1}', '{"a":true}')
        (True, False)
        >>> same_json('{"a":"1"}', '{"a":1}'), same_json("a", "a")
        (False, False)
    """
    parsed = _parsed(said)
    return parsed is not _NOTHING and _typed(parsed) == _typed(_parsed(right))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # A model may write nothing but brackets.
        return _NOTHING


def _typed(value: Any) -> Any:
    """A value whose equality tells true from 1, which Python's does not."""
    if isinstance(value, dict):
        return {key: _typed(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_typed(own) for own in value]
    return type(value).__name__ if isinstance(value, bool) or value is None else None, value
