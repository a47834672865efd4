# SPDX-License-Identifier: Apache-2.0
"""Answers as OpenAI's clients read them: one JSON object, or a stream of server-sent events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_client.serving.refusals import Refusal
from fedcore.worker.serving import Classified, Generated, Loaded

__all__ = ["DONE", "Completion", "classification", "event", "usage"]

DONE = b"data: [DONE]\n\n"
"""The last event of a stream that came to its end."""


def event(value: dict[str, Any] | Refusal) -> bytes:
    r"""A server-sent event.

    Example:
        >>> event({"a": 1})
        b'data: {"a":1}\n\n'
    """
    body = value.body() if isinstance(value, Refusal) else value
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


@dataclass(frozen=True)
class Completion:
    """What all parts of one answer say of themselves.

    Attributes:
        answer_id: Of this answer.
        created: Unix time in seconds.
        model: Its name.
        fingerprint: Of the model: version and digest.
    """

    answer_id: str
    created: int
    model: str
    fingerprint: str

    def whole(self, text: str, done: Generated) -> dict[str, Any]:
        """The answer as one object."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.finish_reason}
        return self._part("chat.completion", [choice]) | {"usage": usage(done)}

    def begins(self) -> dict[str, Any]:
        """The first event."""
        return self._delta({"role": "assistant", "content": ""})

    def more(self, text: str) -> dict[str, Any]:
        """Some more text."""
        return self._delta({"content": text})

    def ends(self, done: Generated) -> dict[str, Any]:
        """The last event with a choice."""
        return self._delta({}, done.finish_reason)

    def counts(self, done: Generated) -> dict[str, Any]:
        """The event that a client asks for with `stream_options.include_usage`."""
        return self._part("chat.completion.chunk", []) | {"usage": usage(done)}

    def _delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._part("chat.completion.chunk", [choice])

    def _part(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def usage(done: Generated) -> dict[str, int]:
    """Tokens of question and answer."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }


def classification(found: Classified, loaded: Loaded, model: str, fingerprint: str) -> dict[str, Any]:
    """Labels with their probabilities, or scores, in the order of the texts.

    Example:
        >>> loaded = Loaded(kind="classification", context_tokens=128, labels=("bad", "good"))
        >>> said = classification(Classified(((0.25, 0.75),)), loaded, "reviews", "v3-ab")
        >>> said["results"][0]["label"], said["results"][0]["probabilities"]
        ('good', {'bad': 0.25, 'good': 0.75})
    """
    cut = set(found.truncated)
    results = [
        _said(scores, loaded) | {"index": index, "truncated": index in cut} for index, scores in enumerate(found.scores)
    ]
    return {"object": "list", "model": model, "system_fingerprint": fingerprint, "results": results}


def _said(scores: Sequence[float], loaded: Loaded) -> dict[str, Any]:
    if loaded.kind == "regression":
        return {"score": scores[0]}
    probabilities = dict(zip(loaded.labels, scores, strict=True))
    best = max(probabilities, key=lambda label: probabilities[label])
    return {"label": best, "probability": probabilities[best], "probabilities": probabilities}
