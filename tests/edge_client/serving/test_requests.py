# SPDX-License-Identifier: Apache-2.0
"""What clients ask, and what they are told where it cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_client.serving.refusals import Refusal
from edge_client.serving.requests import chat_asked, classify_asked

HELLO = {"role": "user", "content": "hello"}


def asked(**fields: Any) -> bytes:
    return json.dumps({"messages": [HELLO], **fields}).encode()


def test_what_a_client_of_openai_sends_is_understood() -> None:
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
    found = chat_asked(
        asked(
            messages=[
                {"role": "developer", "content": "Be kind."},
                {**HELLO, "content": [{"type": "text", "text": "hi"}]},
            ],
            model="reviews",
            stream=True,
            stream_options={"include_usage": True},
            max_completion_tokens=20,
            temperature=0.5,
            top_p=0.9,
            seed=7,
            stop="\n",
            response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}},
            n=1,
            user="somebody",
            frequency_penalty=0,
            tools=[],
        ),
        seed=1,
    )
    one = found.generate
    assert [(message.role, message.content) for message in one.messages] == [("system", "Be kind."), ("user", "hi")]
    assert (found.model, found.stream, found.include_usage) == ("reviews", True, True)
    assert (one.max_tokens, one.temperature, one.top_p, one.seed, one.stop) == (20, 0.5, 0.9, 7, ("\n",))
    # In the order that the client gave.
    assert list(json.loads(one.json_schema)["properties"]) == ["b", "a"]


def test_what_is_left_out_is_as_with_openai() -> None:
    one = chat_asked(asked(), seed=5).generate
    assert (one.temperature, one.top_p, one.seed, one.max_tokens, one.stop, one.json_schema) == (1, 1, 5, None, (), "")
    assert (
        chat_asked(asked(response_format={"type": "json_object"}), seed=0).generate.json_schema == '{"type":"object"}'
    )


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "not JSON"),
        (b"[]", None, "no JSON object"),
        (b"\xff", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b"{}", None, "'messages' is missing"),
        (asked(messages=[]), "messages", "empty"),
        (asked(messages=["hello"]), "messages[0]", "object with role and content"),
        (asked(messages=[{"role": "robot", "content": "x"}]), "messages[0].role", "unknown role 'robot'"),
        (asked(messages=[{"content": "x"}]), "messages[0].role", "unknown role None"),
        (asked(messages=[HELLO, {"role": "user"}]), "messages[1].content", "content is a text"),
        (asked(messages=[{**HELLO, "content": [{"type": "image_url"}]}]), "messages[0].content[0]", "'text' only"),
        (
            asked(messages=[{**HELLO, "content": [{"type": "text", "text": 5}]}]),
            "messages[0].content[0]",
            "'text' only",
        ),
        (asked(messages=[{**HELLO, "content": ["hi"]}]), "messages[0].content[0]", "'text' only"),
        (asked(messages=[{**HELLO, "content": []}]), "messages[0].content", "content is a text"),
        (asked(messages=[{**HELLO, "content": 5}]), "messages[0].content", "content is a text"),
        (asked(messages=[{**HELLO, "name": "bob"}]), "messages[0].name", "not supported"),
        (asked(temperature=3), "temperature", "0 to 2"),
        (asked(temperature="hot"), "temperature", "a number or nothing is needed, and this is text"),
        (asked(max_tokens=0), "max_tokens", "1 to"),
        (asked(max_tokens=2.5), "max_tokens", "a whole number or nothing is needed, and this is a number"),
        (asked(seed=10**30), "seed", "seed"),
        (asked(stop=["a"] * 5), "stop", "1 to 4"),
        (asked(stop=""), "stop", "not empty"),
        (asked(n=2), "n", "not supported"),
        (asked(tools=[{"type": "function"}]), "tools", "not supported"),
        (asked(logprobs=True), "logprobs", "not supported"),
        (asked(temprature=1), "temprature", "unknown field"),
        (asked(response_format={"type": "xml"}), "response_format.type", "unknown type 'xml'"),
        (asked(response_format={"type": "json_schema"}), "response_format.json_schema.schema", "no schema"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(body: bytes, param: str | None, words: str) -> None:
    with pytest.raises(Refusal, match=".") as refused:
        chat_asked(body, seed=0)
    assert refused.value.status == 400
    error = refused.value.body()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]


def test_texts_and_pairs_are_classified() -> None:
    assert classify_asked(b'{"input": "one"}').texts == (("one", None),)
    assert classify_asked(b'{"input": [["a", "b"], "c"]}').texts == (("a", "b"), ("c", None))


@pytest.mark.parametrize(
    "body", [b"{}", b'{"input": []}', b'{"input": [["a"]]}', b'{"input": 3}', b'{"input": "a", "x": 1}']
)
def test_other_inputs_are_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        classify_asked(body)
    assert refused.value.status == 400


def test_too_many_texts_are_refused_with_both_numbers() -> None:
    with pytest.raises(Refusal, match="257 texts, a request has 1 to 256"):
        classify_asked(json.dumps({"input": ["x"] * 257}).encode())
