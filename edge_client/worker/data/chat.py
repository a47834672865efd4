# SPDX-License-Identifier: Apache-2.0
"""Conversations as token ids, with the tokens that the assistant says.

A chat template need not mark the assistant's turns, so they are found by rendering: what the template makes of the
messages before a turn, with its generation prompt, must be how the whole text begins, and the turn is what follows.
Text is made into tokens piece by piece, with a piece for each turn. What a model reads before it answers
(`prompt_ids`) is therefore, token by token, how the example begins that it learned from.

Without a template, a prompt and its completion are joined as they are, after the token that begins a text and before
the one that ends it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Final, Literal

from edge_client.worker.data.conversations import Message, checked_messages
from edge_client.worker.data.reading import Example
from fedcore.errors import DataError

__all__ = ["Rendered", "Span", "prompt_ids", "render"]

Span = tuple[int, int]
"""From the first to before the last, of characters or tokens."""

_ANCHORS: Final = ("\n", " ", ":", "a")
_SHOWN: Final = 40


@dataclass(frozen=True)
class Rendered:
    """A conversation as a model sees it.

    Attributes:
        ids: Its tokens.
        learned: Spans of `ids` that are learned, in order; the first token never is, since nothing foretells it.
        pieces: Its text, each piece with whether it is learned.
    """

    ids: tuple[int, ...]
    learned: tuple[Span, ...]
    pieces: tuple[tuple[str, bool], ...]


def render(example: Example, tokenizer: Any, template: str = "", learn: Literal["all", "last"] = "all") -> Rendered:
    """Token ids of an example, and what of them is learned: the assistant's turns, each with the token that ends it.

    A text without messages is learned whole, up to the token that ends a text.

    Args:
        example: Messages that end with the assistant's, or a text.
        tokenizer: The model's.
        template: A chat template (Jinja); empty: the tokenizer's.
        learn: Every turn of the assistant, or the last.

    Raises:
        DataError: The template fails, or where the assistant's turns are cannot be told.
    """
    if not example.messages:
        return _joined(_Text(tokenizer), "", example.text)
    messages, text = example.messages, _Text(tokenizer)
    if not template and not tokenizer.chat_template:
        prompt, completion = _pair(messages, example.place)
        return _joined(text, prompt, completion)
    layout = _laid_out(messages, tokenizer, template, example.place)
    turns = layout.turns if learn == "all" else layout.turns[-1:]
    for turn in turns:
        if isinstance(turn, str):
            raise DataError(
                f"the chat template gives no turn that can be told from the rest: {turn}",
                place=example.place,
                remedy='set task.learn to "last"' if turn is not layout.turns[-1] else "give another in task.template",
            )
    return _tokens(text, layout, [turn for turn in turns if not isinstance(turn, str)])


def prompt_ids(messages: Sequence[Message], tokenizer: Any, template: str = "") -> tuple[int, ...]:
    """What a model reads before it answers: the conversation so far, and the template's generation prompt.

    Args:
        messages: They end with the user's, or a tool's.
        tokenizer: The model's.
        template: As it was trained with; empty: the tokenizer's.

    Raises:
        DataError: A message is none, or the template fails.
    """
    place = "messages"
    checked, text = checked_messages(messages, place), _Text(tokenizer)
    if not template and not tokenizer.chat_template:
        if [message["role"] for message in checked] != ["user"]:
            raise _no_template(place)
        return text.begin(checked[0]["content"])
    return _tokens(text, _laid_out(checked, tokenizer, template, place), []).ids


@dataclass(frozen=True)
class _Layout:
    """A rendered text, and each of the assistant's turns in it; or why it cannot be told where one is."""

    text: str
    turns: tuple[Span | str, ...]


def _laid_out(messages: Sequence[Message], tokenizer: Any, template: str, place: str) -> _Layout:
    specials = _Specials(tokenizer)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    whole = _rendered(messages, tokenizer, template, place, asks=len(messages) - 1 not in answers)
    turns: list[Span | str] = []
    for index in answers:
        before = _rendered(messages[:index], tokenizer, template, place, asks=True) if index else ""
        if not whole.startswith(before):
            turns.append(_difference(before, whole))
            continue
        last = index == len(messages) - 1
        so_far = whole if last else _rendered(messages[: index + 1], tokenizer, template, place, asks=False)
        turns.append(_turn(before, so_far, whole, specials))
    return _Layout(whole, tuple(turns))


def _turn(before: str, so_far: str, whole: str, specials: _Specials) -> Span | str:
    """Where a turn is in the whole text, that begins after `before`, and after which nothing but tokens that end
    something may be otherwise in the text that ends with it."""
    start = len(before)
    if not so_far.startswith(before):
        return _difference(before, so_far)
    end = start + _common(so_far[start:], whole[start:])
    # Two special tokens may begin alike: then neither is common.
    for text in (so_far, whole):
        parted = (found.start() for found in specials.one.finditer(text, start) if found.start() < end < found.end())
        end = min(parted, default=end)
    if specials.one.sub("", so_far[end:]).strip():
        return _difference(so_far, whole)
    closed = specials.last.search(whole[:end], start)
    if closed is not None:
        return start, closed.end(1)
    # The last turn of all may be closed by another token than the ones before it.
    after = specials.one.match(whole, start + len(whole[start:end].rstrip()))
    return start, after.end() if after else end


def _difference(wanted: str, whole: str) -> str:
    at = _common(wanted, whole)
    shown = (repr(text[max(0, at - 10) : at + _SHOWN]) for text in (wanted, whole))
    return "what is {} while the turn is said, is {} in the end".format(*shown)


def _common(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (mine, yours) in enumerate(pairs) if mine != yours), min(len(one), len(other)))


def _tokens(text: _Text, layout: _Layout, learned: Sequence[Span]) -> Rendered:
    """Token ids, made piece by piece; up to the last that is learned, where any is."""
    known = [turn for turn in layout.turns if not isinstance(turn, str)]
    end = learned[-1][1] if learned else len(layout.text)
    cuts = sorted({0, end, *(place for turn in known for place in turn)})
    ids: list[int] = []
    spans, pieces = [], []
    for start, stop in pairwise(cuts):
        first, is_learned = len(ids), (start, stop) in learned
        ids += text.go_on(layout.text[start:stop]) if start else text.ids(layout.text[start:stop])
        pieces.append((layout.text[start:stop], is_learned))
        if is_learned:
            spans.append((max(1, first), len(ids)))
    return Rendered(tuple(ids), tuple(spans), tuple(pieces))


def _joined(text: _Text, prompt: str, completion: str) -> Rendered:
    """A prompt and its completion without a template; or a text alone, where the prompt is empty."""
    before = text.begin(prompt) if prompt else ()
    said = text.end(text.go_on(completion) if prompt else text.begin(completion))
    learned = (max(1, len(before)), len(before) + len(said))
    pieces = ((prompt, False), (completion, True)) if prompt else ((completion, True),)
    return Rendered((*before, *said), (learned,), pieces)


def _pair(messages: Sequence[Message], place: str) -> tuple[str, str]:
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise _no_template(place)
    return messages[0]["content"], messages[1]["content"]


def _no_template(place: str) -> DataError:
    return DataError(
        "the tokenizer has no chat template, which more than one question and its answer need",
        place=place,
        remedy="give one in task.template",
    )


class _Text:
    """A tokenizer, asked for no special tokens but those that are named.

    Args:
        tokenizer: Of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ids(self, text: str) -> tuple[int, ...]:
        """Of a text that nothing comes before."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def go_on(self, text: str) -> tuple[int, ...]:
        """Of a text that something comes before: some tokenizers put a space in front of what begins."""
        alone = self.ids(text)
        for anchor in _ANCHORS:
            head, both = self.ids(anchor), self.ids(anchor + text)
            if both[: len(head)] == head:
                return both[len(head) :]
        return alone

    def begin(self, text: str) -> tuple[int, ...]:
        """With the token that begins a text, once, where the tokenizer puts one."""
        ids, first = self.ids(text), self._tokenizer.bos_token_id
        begins = first is not None and list(self._tokenizer("a")["input_ids"])[:1] == [first]
        return (first, *ids) if begins and ids[:1] != (first,) else ids

    def end(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """With the token that ends a text, once, where there is one."""
        last = self._tokenizer.eos_token_id
        return ids if last is None or ids[-1:] == (last,) else (*ids, last)


class _Specials:
    """A tokenizer's special tokens, as they stand in a text.

    Attributes:
        one: Any of them.
        last: Those that close a text (group 1): what follows them is space and special too.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        some = "|".join(map(re.escape, names)) or "(?!)"
        self.one = re.compile(some)
        self.last = re.compile(rf"((?:{some})+)(?:\s|{some})*\Z")


def _rendered(messages: Sequence[Message], tokenizer: Any, template: str, place: str, *, asks: bool) -> str:
    try:
        made: str = tokenizer.apply_chat_template(
            list(messages), chat_template=template or None, tokenize=False, add_generation_prompt=asks
        )
    except Exception as error:
        # The template is foreign code: whatever it raises, the user must learn where.
        line = _line_of(error)
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"the chat template fails{f' in its line {line}' if line else ''}: {said}",
            place=place,
            remedy="repair the row, or give another template in task.template",
        ) from error
    return made


def _line_of(error: Exception) -> int:
    """The template's line in which an error happened; 0 where it is not known."""
    line = int(getattr(error, "lineno", 0) or 0)
    for frame, number in _frames(error.__traceback__):
        if frame == "<template>":
            line = number
    return line


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
