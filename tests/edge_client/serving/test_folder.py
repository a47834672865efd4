# SPDX-License-Identifier: Apache-2.0
"""A model folder served by itself: real processes, a tiny random model, a plain client."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.edge_client.serving.served import Answer, Served, chat, served
from tests.edge_client.serving.tiny_chat import CONTEXT, write_tiny_chat
from tests.patience import until

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder, "--model", write_tiny_chat(folder / "tiny"), "--memory-budget", "900 MiB") as server:
        assert server.get("/health").json["worker"] == "away"
        yield server


def test_an_answer_has_openais_form(server: Served) -> None:
    answer = server.post(CHAT, chat(max_tokens=8, temperature=0, model="tiny"))
    assert answer.status == 200, answer.body
    said = answer.json
    assert (said["object"], said["model"]) == ("chat.completion", "tiny")
    (choice,) = said["choices"]
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] in ("stop", "length")
    usage = said["usage"]
    # The template's marks, five letters, and the token that ends a turn.
    assert usage["prompt_tokens"] == len("<user>hello") + 1 + len("<assistant>")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_says_the_same_and_ends_with_its_counts(server: Served) -> None:
    whole = server.post(CHAT, chat(max_tokens=12, seed=3))
    stream = server.post(CHAT, chat(max_tokens=12, seed=3, stream=True, stream_options={"include_usage": True}))
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.text == whole.text
    assert stream.events[-1] == "[DONE]"
    assert stream.events[-2]["usage"] == whole.json["usage"]
    assert stream.events[-3]["choices"][0]["finish_reason"] == whole.json["choices"][0]["finish_reason"]
    assert stream.events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_a_seed_decides_and_a_stop_text_ends(server: Served) -> None:
    texts = {seed: server.post(CHAT, chat(max_tokens=16, seed=seed)).text for seed in (1, 2)}
    assert texts[1] != texts[2]
    assert server.post(CHAT, chat(max_tokens=16, seed=1)).text == texts[1]
    stop = next(sign for sign in texts[1][1:] if sign.isascii())
    cut = server.post(CHAT, chat(max_tokens=16, seed=1, stop=[stop]))
    assert cut.text == texts[1][: texts[1].index(stop)]
    assert cut.json["choices"][0]["finish_reason"] == "stop"


def test_the_model_is_told(server: Served) -> None:
    # It is loaded for the first who asks, and told in full from then on.
    assert server.post(CHAT, chat(max_tokens=1)).status == 200
    worker = server.worker
    # Some 40 MB that transformers would import for models that nobody has here.
    assert worker is not None and "/scipy/" not in Path(f"/proc/{worker.pid}/maps").read_text()
    (model,) = server.get("/v1/models").json["data"]
    assert (model["id"], model["kind"], model["context_tokens"], model["version"]) == ("tiny", "chat", CONTEXT, 0)
    assert "nothing learned" in model["note"]
    assert server.get("/v1/models/tiny").json == model
    health = server.get("/health").json
    assert (health["status"], health["worker"], health["model"]) == ("ok", "ready", "tiny")
    assert 0 < health["memory_used_bytes"] < health["memory_budget_bytes"] == 900 * 2**20


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (CHAT, b"{", 400, "not JSON"),
        (CHAT, chat(messages=[]), 400, "messages is empty"),
        (CHAT, chat(messages=[{"role": "robot", "content": "x"}]), 400, "unknown role 'robot'"),
        (CHAT, chat(messages=[{"role": "assistant", "content": "x"}] * 2), 400, "speaks twice"),
        (CHAT, chat(model="gpt-9"), 404, "there is no model 'gpt-9' here, only 'tiny'"),
        (CHAT, chat("x" * CONTEXT), 400, f"has {CONTEXT + 18:,} tokens, the context holds {CONTEXT:,} together"),
        (CHAT, chat(max_tokens=CONTEXT), 400, f"may have {CONTEXT:,}, the context holds {CONTEXT:,} together"),
        (CHAT, chat("x" * 2**20), 413, "at most 1,048,576 bytes"),
        (CHAT, chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}), 400, "schema"),
        ("/v1/classify", {"input": "x"}, 400, "this model is one for /v1/chat/completions"),
        ("/v1/completions", {}, 404, "nothing here"),
    ],
)
def test_what_cannot_be_answered_is_told_why(server: Served, path: str, body: object, status: int, words: str) -> None:
    answer = server.post(path, body)
    assert answer.status == status, answer.body
    error = answer.json["error"]
    assert words in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_only_json_of_our_own_names_and_pages_is_taken(server: Served) -> None:
    assert server.post(CHAT, chat(), {"Content-Type": "text/plain"}).status == 415
    assert server.post(CHAT, chat(), {"Origin": "https://elsewhere.example"}).status == 403
    assert server.get("/health", {"Host": "rebound.example"}).status == 421
    assert server.get(CHAT).status == 405


def test_clients_at_once_are_answered_in_turn_and_too_many_refused(server: Served) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda seed: server.post(CHAT, chat(max_tokens=40, seed=seed)), range(20)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 9
    for seed, answer in enumerate(answers):
        if answer.status == 200:
            assert answer.text == server.post(CHAT, chat(max_tokens=40, seed=seed)).text
        else:
            assert "wait already" in answer.json["error"]["message"] and int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(server: Served, stream: bool) -> None:
    assert server.post(CHAT, chat(max_tokens=1)).status == 200
    connection, worker = server.connect(), server.worker
    assert worker is not None
    # Its garbage does not end by itself: every token that ends an answer is kept out by the schema.
    endless = {"type": "json_schema", "json_schema": {"schema": {"type": "array", "items": {}, "minItems": 10**4}}}
    if not stream:
        # Stopped first, so that it cannot be quicker than we are.
        worker.suspend()
    server.send(connection, CHAT, chat(max_tokens=CONTEXT - 40, stream=stream, response_format=endless))
    if stream:
        assert connection.getresponse().read(20)
    else:
        until(lambda: server.get("/health").json["answering"], [server.process])
    connection.sock.close()
    connection.close()
    worker.resume()
    until(lambda: not server.get("/health").json["answering"], [server.process])
    assert server.post(CHAT, chat(max_tokens=4)).status == 200


def test_a_worker_that_dies_ends_the_stream_with_an_error_and_the_next_request_works(server: Served) -> None:
    connection = server.connect()
    server.send(connection, CHAT, chat(max_tokens=CONTEXT - 40, stream=True, stop=["\0"]))
    # Stopped first, so that it cannot be quicker than we are.
    worker = server.worker
    assert worker is not None
    worker.suspend()
    os.kill(worker.pid, signal.SIGKILL)
    answer = Answer(connection.getresponse())
    connection.close()
    error = answer.json["error"] if answer.status != 200 else answer.events[-1]["error"]
    assert "the worker ended (signal 9)" in error["message"] and error["type"] == "server_error"
    assert server.post(CHAT, chat(max_tokens=4)).status == 200


SCHEMAS = {
    "bounded": {
        "type": "object",
        "properties": {
            "name": {"enum": ["HassTurnOn", "HassTurnOff", "HassLightSet"]},
            "brightness": {"type": "integer", "minimum": 0, "maximum": 100},
            "on": {"type": "boolean"},
        },
        "required": ["name", "brightness", "on"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"enum": [1, "two", None]}, "minItems": 2, "maxItems": 3},
    "choice": {"anyOf": [{"const": "yes"}, {"type": "object", "properties": {}, "additionalProperties": False}]},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_with_a_schema_always_parses(server: Served, name: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": name, "schema": SCHEMAS[name]}}
    for seed in range(7):
        asked = chat(max_tokens=300, response_format=form, seed=seed, temperature=1.5 if seed else 0)
        answer = server.post(CHAT, asked).json["choices"][0]
        assert answer["finish_reason"] == "stop", answer
        value = json.loads(answer["message"]["content"])
        if name == "bounded":
            assert list(value) == ["name", "brightness", "on"] and 0 <= value["brightness"] <= 100
        elif name == "array":
            assert 2 <= len(value) <= 3
        else:
            assert value in ("yes", {})


def test_a_structured_answer_that_runs_out_of_tokens_says_so(server: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": SCHEMAS["bounded"]}}
    answer = server.post(CHAT, chat(max_tokens=3, response_format=form)).json["choices"][0]
    assert answer["finish_reason"] == "length"
    with pytest.raises(ValueError, match=r"."):
        json.loads(answer["message"]["content"])
    free = server.post(CHAT, chat(max_tokens=30, seed=1, response_format={"type": "json_object"})).json["choices"][0]
    assert free["message"]["content"].startswith("{")
