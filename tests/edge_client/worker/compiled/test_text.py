# SPDX-License-Identifier: Apache-2.0
"""Text comes as it becomes certain: whole characters, and nothing of a stop text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from edge_client.worker.compiled.text import TextStream
from tests.causal_models import byte_tokenizer


def said(tokenizer: Any, text: str, *stop: str) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stop)
    parts = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        parts.append(stream.take(token))
        if stream.stopped:
            return parts, stream
    return [*parts, stream.rest()], stream


@pytest.mark.parametrize(
    "text", ["plain words", "Grüße, 世界", "🌟🧑‍🚀 two", " leading blank", "a\n\nb", "\ufffd is one too"]
)
def test_bytes_of_a_character_are_said_together(text: str) -> None:
    parts, _ = said(byte_tokenizer(), text)
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text
    # A token a byte: a character comes with the last of its bytes.
    assert len(parts) == len(text.encode()) + 1


@pytest.mark.parametrize("text", ["Once upon a time, there was", "two  blanks and Ünïcode 🌟 end"])
def test_a_sentencepiece_tokenizer_keeps_its_blanks(shared_folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_folder / "models" / "stories260K")
    whole = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    parts, _ = said(tokenizer, text)
    assert "".join(parts) == whole and sum(bool(part) for part in parts) > 5


def test_half_a_character_is_told_at_the_end() -> None:
    stream = TextStream(byte_tokenizer())
    half = byte_tokenizer().encode("🌟")[:2]
    assert [stream.take(token) for token in half] == ["", ""]
    assert "\ufffd" in stream.rest()


def test_special_tokens_have_no_text() -> None:
    stream = TextStream(byte_tokenizer())
    letter = byte_tokenizer().encode("x")[0]
    assert [stream.take(token) for token in (298, letter, 297, letter)] == ["", "x", "", "x"]


@pytest.mark.parametrize(
    ("text", "stops", "answer"),
    [
        ("one two END three", ("END",), "one two "),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("ab aab aaab!", ("aaab",), "ab aab "),
        ("first stop wins", ("wins", "stop"), "first "),
        ("nearly EN but not", ("END",), "nearly EN but not"),
        ("ends in EN", ("END",), "ends in EN"),
    ],
)
def test_stop_texts_end_an_answer_and_are_not_part_of_it(text: str, stops: tuple[str, ...], answer: str) -> None:
    parts, stream = said(byte_tokenizer(), text, *stops)
    assert "".join(parts) == answer
    assert stream.stopped == (answer != text)
    # Nothing that was said had to be taken back.
    assert all(answer.startswith("".join(parts[:count])) for count in range(len(parts)))
