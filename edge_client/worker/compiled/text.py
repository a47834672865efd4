# SPDX-License-Identifier: Apache-2.0
"""From tokens to text as they come.

A token is a piece of bytes, not of text: an emoji takes up to four of them, and a SentencePiece token's blank depends
on what stands before it. So the last few tokens are decoded together, once with the new one and once without: what the
text gained is the new token's, unless it ends in the middle of a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["TextStream"]

_UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character, or not yet one."""


class TextStream:
    """One answer's text; what may still become a stop text is held back.

    Args:
        tokenizer: The model's; special tokens have no text.
        stop: Texts that end the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        # Text is certain up to `_done` tokens; those from `_context` on are decoded with what follows.
        self._context, self._done = 0, 0
        self._held = ""
        self.stopped = False
        """Whether a stop text has come."""

    def take(self, token: int) -> str:
        """Take a token; returns the text that is certain now and was not before."""
        self._ids.append(token)
        before = self._decoded(self._context, self._done)
        after = self._decoded(self._context, len(self._ids))
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._context, self._done = self._done, len(self._ids)
        return self._released(after[len(before) :])

    def rest(self) -> str:
        """The answer ends: what is left of its text, half characters among it."""
        if self.stopped:
            return ""
        before = self._decoded(self._context, self._done)
        left = self._released(self._decoded(self._context, len(self._ids))[len(before) :])
        left, self._held = left + self._held, ""
        return left

    def _decoded(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _released(self, text: str) -> str:
        """What of the held and the new text cannot become part of a stop text any more."""
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Characters at the text's end that a stop text begins with."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
