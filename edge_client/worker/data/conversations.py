# SPDX-License-Identifier: Apache-2.0
"""Rows that are conversations: a list of messages, a prompt with its completion, or plain text; whatever cannot be
learned from is refused with its place."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedcore.config.sections import DataSection
from fedcore.errors import DataError

__all__ = ["ROLES", "Message", "checked_messages", "conversation_of", "has_conversation"]

Message = Mapping[str, Any]
"""`role` and `content`; other keys are the template's."""

ROLES: Final = ("system", "developer", "user", "assistant", "tool")


def has_conversation(row: Mapping[str, Any], section: DataSection) -> bool:
    """Whether a row is more than plain text."""
    return row.get(section.messages) is not None or (section.prompt in row and section.completion in row)


def conversation_of(row: Mapping[str, Any], place: str, section: DataSection) -> tuple[Message, ...] | str:
    """What a row says: messages that end with an answer, or plain text.

    A row with `messages` is read by them, one with `prompt` and `completion` by those (each a text, or a list of
    messages), any other by `text`.

    Raises:
        DataError: None of these is there, or it cannot be learned from; the place says which.
    """
    if row.get(section.messages) is not None:
        where = f"{place}: {section.messages}"
        return _answered(checked_messages(_listed(row[section.messages], where), where), where)
    if section.prompt in row and section.completion in row:
        asked = _side(row[section.prompt], "user", f"{place}: {section.prompt}")
        said = _side(row[section.completion], "assistant", f"{place}: {section.completion}")
        if not said:
            raise DataError("there is no answer", place=f"{place}: {section.completion}", remedy="leave the row out")
        return _answered(checked_messages([*asked, *said], place), place)
    if section.text not in row:
        raise _no_column(row, place, section)
    text = row[section.text]
    if not isinstance(text, str):
        raise DataError(f"column {section.text!r} holds {type(text).__name__}, not text", place=place)
    if not text.strip():
        raise DataError("the text is empty", place=f"{place}: {section.text}", remedy="leave the row out")
    return text


def checked_messages(messages: Sequence[Any], place: str) -> tuple[Message, ...]:
    """Messages as a template can render them, their content as text.

    Raises:
        DataError: There are none, one is none, its role is unknown or it is empty, or the assistant speaks twice.

    Example:
        >>> checked_messages([{"role": "user", "content": [{"type": "text", "text": "Hi."}]}], "row 1")
        ({'role': 'user', 'content': 'Hi.'},)
    """
    if not messages:
        raise DataError("there are no messages", place=place, remedy="leave the row out")
    found: list[Message] = []
    for number, message in enumerate(messages, 1):
        found.append(_message(message, f"{place}: message {number}"))
        if number > 1 and found[-1]["role"] == found[-2]["role"] == "assistant":
            raise DataError(
                "the assistant speaks twice in a row", place=f"{place}: message {number}", remedy="join the two"
            )
    return tuple(found)


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(
            f"{type(message).__name__} is no message", place=place, remedy='write {"role": "user", "content": "..."}'
        )
    role = message.get("role")
    if role not in ROLES:
        near = difflib.get_close_matches(str(role), ROLES, 1)
        said = "there is no role" if role is None else f"no role {role!r}"
        raise DataError(
            said, place=place, remedy=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(ROLES)}"
        )
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_of_part(part, place) for part in content)
    if content is None and message.get("tool_calls"):
        return message
    if not isinstance(content, str):
        said = "there is no content" if content is None else f"its content is {type(content).__name__}, not text"
        raise DataError(said, place=place, remedy="content is a text, or a list of text parts")
    if role in ("user", "assistant") and not content.strip() and not message.get("tool_calls"):
        raise DataError(f"what the {role} says is empty", place=place, remedy="leave the row out")
    return {**message, "content": content}


def _text_of_part(part: Any, place: str) -> str:
    """Of a content in parts, as some APIs write it."""
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise DataError("a part of its content is no text", place=place, remedy="only text can be learned from")
    return text


def _answered(messages: tuple[Message, ...], place: str) -> tuple[Message, ...]:
    last = messages[-1]["role"]
    if last != "assistant":
        raise DataError(
            f"there is no answer: the last message is the {last}'s",
            place=place,
            remedy="end with the assistant's, or leave the row out",
        )
    return messages


def _listed(value: Any, place: str) -> Sequence[Any]:
    """A list, also where a table's cell holds it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"not JSON: {error}", place=place, remedy="it holds a list of messages") from None
    if not isinstance(value, list | tuple):
        raise DataError(f"{type(value).__name__} is no list of messages", place=place)
    return value


def _side(value: Any, role: str, place: str) -> Sequence[Any]:
    """One side of a pair of columns: a text is one message of `role`; nothing where it is empty."""
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value.strip() else []
    if value is None:
        return []
    return _listed(value, place)


def _no_column(row: Mapping[str, Any], place: str, section: DataSection) -> DataError:
    wanted = (section.messages, section.prompt, section.completion, section.text)
    near = {name: difflib.get_close_matches(name, map(str, row), 1) for name in wanted if name not in row}
    hint = "".join(f"did you mean {found[0]!r} for {name!r}? " for name, found in near.items() if found)
    return DataError(
        f"no column {section.messages!r}, no pair {section.prompt!r} and {section.completion!r}, no {section.text!r}",
        place=place,
        remedy=f"{hint}columns: {', '.join(map(str, row))}",
    )
