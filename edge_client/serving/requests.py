# SPDX-License-Identifier: Apache-2.0
"""What a client asks, read from JSON and checked: each field that OpenAI's interface has is understood, has only its
neutral value, or is refused by name. Nothing that would change an answer is passed over in silence."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edge_client.serving.refusals import Refusal
from fedcore.config.words import in_words
from fedcore.worker.serving import ChatMessage, Generate

__all__ = ["ChatAsked", "ClassifyAsked", "chat_asked", "classify_asked"]

_MOST_STOPS, _MOST_TEXTS = 4, 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Fields that this server does not have, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "function_call": ("none", None),
    "functions": ([], None),
    "logit_bias": ({}, None),
    "logprobs": (False, None),
    "modalities": (["text"], None),
    "n": (1, None),
    "parallel_tool_calls": (True, False, None),
    "presence_penalty": (0, None),
    "reasoning_effort": (None,),
    "service_tier": ("auto", "default", None),
    "store": (False, None),
    "tool_choice": ("none", "auto", None),
    "tools": ([], None),
    "top_logprobs": (0, None),
    "verbosity": ("medium", None),
}
# Words about the request itself, which no answer depends on.
_ABOUT = ("metadata", "prompt_cache_key", "safety_identifier", "user")


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False


class _Chat(msgspec.Struct, frozen=True, kw_only=True):
    messages: list[Any]
    model: str = ""
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None


class _Classify(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    input: str | list[str | list[str]]
    model: str = ""


class ChatAsked(msgspec.Struct, frozen=True):
    """A request for `/v1/chat/completions`."""

    generate: Generate
    model: str
    """As the client names it; empty where it does not."""
    stream: bool
    include_usage: bool


class ClassifyAsked(msgspec.Struct, frozen=True):
    """A request for `/v1/classify`."""

    texts: tuple[tuple[str, str | None], ...]
    model: str


def chat_asked(body: bytes, seed: int) -> ChatAsked:
    """Read a request for an answer.

    Args:
        body: JSON.
        seed: Taken where the client names none.

    Raises:
        Refusal: 400, with the field.

    Example:
        >>> asked = chat_asked(b'{"messages": [{"role": "user", "content": "hello"}], "temperature": 0}', seed=7)
        >>> asked.generate.messages[0].content, asked.generate.temperature, asked.stream
        ('hello', 0.0, False)
    """
    raw = _object(body)
    _refuse_unsupported(raw)
    chat = _converted(raw, _Chat)
    most = _or(chat.max_completion_tokens, chat.max_tokens)
    generate = Generate(
        answer=0,
        messages=_messages(chat.messages),
        max_tokens=_within("max_tokens", most, 1, 2**20),
        temperature=_or(_within("temperature", chat.temperature, 0.0, 2.0), 1.0),
        top_p=_or(_within("top_p", chat.top_p, 0.0, 1.0), 1.0),
        top_k=_or(_within("top_k", chat.top_k, 0, 2**20), 0),
        seed=_or(_within("seed", chat.seed, -(2**63), 2**64 - 1), seed) % 2**63,
        stop=_stops(chat.stop),
        json_schema=_schema(chat.response_format),
    )
    include_usage = chat.stream_options is not None and chat.stream_options.include_usage
    return ChatAsked(generate, chat.model, bool(chat.stream), include_usage)


def classify_asked(body: bytes) -> ClassifyAsked:
    """Read a request for labels: `input` is a text, a list of texts, or a list of pairs of texts.

    Raises:
        Refusal: 400, with the field.

    Example:
        >>> classify_asked(b'{"input": ["good", "bad"]}').texts
        (('good', None), ('bad', None))
    """
    asked = _converted(_object(body), _Classify)
    given: list[str | list[str]] = [asked.input] if isinstance(asked.input, str) else asked.input
    if not 1 <= len(given) <= _MOST_TEXTS:
        raise Refusal(400, f"input has {len(given)} texts, a request has 1 to {_MOST_TEXTS}", param="input")
    texts: list[tuple[str, str | None]] = []
    for index, one in enumerate(given):
        if isinstance(one, str):
            texts.append((one, None))
        elif len(one) == 2:
            texts.append((one[0], one[1]))
        else:
            raise Refusal(400, f"a pair has two texts, this one {len(one)}", param=f"input[{index}]")
    return ClassifyAsked(tuple(texts), asked.model)


def _object(body: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise Refusal(400, "the body is no JSON object", code="invalid_json")
    return raw


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    known = {*_Chat.__struct_fields__, *_NEUTRAL, *_ABOUT}
    for name, value in raw.items():
        if name not in known:
            raise Refusal(400, f"unknown field {name!r}", param=name, code="unknown_parameter")
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise Refusal(
                400, f"{name} is not supported by this server: leave it out", param=name, code="unsupported_parameter"
            )


def _converted(raw: dict[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        words, _, path = str(error).partition(" - at `$.")
        words = in_words(words)
        param = path.rstrip("`") or None
        raise Refusal(400, f"{param}: {words}" if param else words, param=param) from None


def _messages(raw: list[Any]) -> tuple[ChatMessage, ...]:
    if not raw:
        raise Refusal(400, "messages is empty: it needs at least one", param="messages")
    return tuple(_message(one, f"messages[{index}]") for index, one in enumerate(raw))


def _message(raw: Any, place: str) -> ChatMessage:
    if not isinstance(raw, dict):
        raise Refusal(400, "a message is an object with role and content", param=place)
    role = raw.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise Refusal(400, f"unknown role {role!r}: system, user or assistant", param=f"{place}.role")
    for name, value in raw.items():
        if name not in ("role", "content") and value not in (None, []):
            raise Refusal(400, f"{name!r} of a message is not supported", param=f"{place}.{name}")
    found = msgspec.convert(_ROLES[role], Literal["system", "user", "assistant"])
    return ChatMessage(found, _text(raw.get("content"), f"{place}.content"))


def _text(content: Any, place: str) -> str:
    """A message's text: a string, or a list of parts of the type `text`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise Refusal(400, "content is a text, or a list of parts of the type 'text'", param=place)
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise Refusal(400, "this server reads parts of the type 'text' only", param=f"{place}[{index}]")
        texts.append(text)
    return "".join(texts)


def _within(name: str, value: Any, least: float, most: float) -> Any:
    if value is not None and not least <= value <= most:
        raise Refusal(400, f"{name} is {value}, it is {least:g} to {most:g}", param=name)
    return value


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > _MOST_STOPS or "" in stops:
        raise Refusal(400, f"stop is 1 to {_MOST_STOPS} texts that are not empty", param="stop")
    return stops


def _schema(response_format: dict[str, Any] | None) -> str:
    """The JSON schema that is asked for, in the order of properties that it came in; empty for plain text."""
    if response_format is None:
        return ""
    kind, place = response_format.get("type"), "response_format"
    if kind == "text":
        return ""
    if kind == "json_object":
        return '{"type":"object"}'
    if kind != "json_schema":
        raise Refusal(400, f"unknown type {kind!r}: text, json_object or json_schema", param=f"{place}.type")
    given = response_format.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        raise Refusal(400, "there is no schema", param=f"{place}.json_schema.schema")
    return msgspec.json.encode(schema).decode()
