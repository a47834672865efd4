# SPDX-License-Identifier: Apache-2.0
"""Structured answers: which tokens a JSON schema allows next, by llguidance (an optional extra).

The schema decides what is there and in which order; the model decides what it says. Between two signs of JSON there
is at most one blank, or a new line with its indent: with free white space, a model that is not sure would fill its
answer with it."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import DataError, ModelError

__all__ = ["Grammars", "SchemaConstraint"]

_WHITE_SPACE = r" |\n {0,16}"
_REMEDY = "pip install 'fedkrso[serve]'"


class Grammars:
    """Makes constraints for one model's tokens. Costs about a second, once.

    Args:
        tokenizer: The model's, of the fast kind.
        end_tokens: Tokens that end an answer.

    Raises:
        ModelError: The package is not installed, or it cannot read this tokenizer.
    """

    def __init__(self, tokenizer: Any, end_tokens: Iterable[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise ModelError("structured answers need the package llguidance", remedy=_REMEDY) from None
        self._matcher: Any = llguidance.LLMatcher
        try:
            self._tokens: Any = llguidance.LLTokenizer(_serialised(tokenizer), eos_token=sorted(end_tokens))
        except ValueError as error:
            raise ModelError(f"structured answers cannot be made with this tokenizer: {_line(error)}") from None

    def constraint(self, schema: str) -> SchemaConstraint:
        """A constraint for one answer.

        Args:
            schema: JSON.

        Raises:
            DataError: llguidance refuses the schema; the message is its own.
        """
        options = {"whitespace_pattern": _WHITE_SPACE}
        try:
            grammar = self._matcher.grammar_from_json_schema(schema, overrides=options)
        except ValueError as error:
            raise DataError(f"this schema cannot be used: {_line(error)}", place="response_format") from None
        matcher = self._matcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise DataError(
                f"this schema cannot be used: {_line(matcher.get_error())}",
                place="response_format",
                remedy="leave out what it names",
            )
        return SchemaConstraint(matcher)


class SchemaConstraint:
    """Which tokens may come next in one answer; a `Constraint` of `edge_client.worker.compiled`.

    Args:
        matcher: Of llguidance, at its beginning.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> NDArray[np.bool_]:
        """bool (v,): tokens that may come."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require()
        return np.unpackbits(bits, bitorder="little").astype(bool)

    def accept(self, token: int) -> None:
        """A token was taken."""
        self._matcher.consume_token(token)
        self._require()

    def _require(self) -> None:
        if self._matcher.is_error():
            raise DataError(f"the answer left its schema: {_line(self._matcher.get_error())}", place="response_format")


def _serialised(tokenizer: Any) -> str:
    """The JSON of `tokenizers`, whichever class it is inside of.

    Raises:
        ValueError: It is of another kind.
    """
    inside = getattr(tokenizer, "backend_tokenizer", None)
    if inside is None:
        raise ValueError("only fast tokenizers are supported")
    one = copy(inside)
    one.no_padding()
    one.no_truncation()
    text: str = one.to_str()
    return text


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
