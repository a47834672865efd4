# SPDX-License-Identifier: Apache-2.0
"""The endpoint as an ASGI application: every request in one short function. docs/serve.md tells the interface."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive

from edge_client.serving.guard import Guard
from edge_client.serving.hosting import Standing
from edge_client.serving.refusals import Refusal
from edge_client.serving.replies import Completion, classification
from edge_client.serving.requests import chat_asked, classify_asked
from edge_client.serving.streams import EventStream, streamed, whole
from edge_client.serving.ticket import ClientLeft, Ticket
from fedcore.web.bodies import json_body
from fedcore.web.entrance import Entrance
from fedcore.web.tokens import Tokens
from fedcore.worker.serving import Classified, Classify, Generate, Loaded

__all__ = ["MOST_BODY_BYTES", "Host", "Wiring", "make_app"]

MOST_BODY_BYTES = 2**20


class Host(Protocol):
    """What answers: `Hosting`."""

    @property
    def standing(self) -> Standing:
        """How things stand now."""
        ...

    def ask(self, command: Generate | Classify) -> Ticket:
        """Get in line."""
        ...


@dataclass(frozen=True)
class Wiring:
    """What the application is connected to.

    Attributes:
        host: What answers.
        model: What clients call it.
        tokens: Empty: everybody who reaches us may ask.
        clock: Unix time in seconds.
        new_seed: Of an answer whose client names none; also names the answer.
        names: Of a reverse proxy.
        say: Gets one line for an address that guesses tokens.
    """

    host: Host
    model: str
    tokens: Tokens
    clock: Callable[[], float]
    new_seed: Callable[[], int]
    names: tuple[str, ...] = ()
    say: Callable[[str], None] = lambda line: None


def make_app(wiring: Wiring) -> ASGIApp:
    """The application, guarded."""
    api = _Api(wiring)
    routes = [
        Route("/health", api.health),
        Route("/v1/models", api.models),
        Route("/v1/models/{model}", api.model),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/classify", api.classify, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        Refusal: _refused,
        ClientLeft: _nobody,
        ClientDisconnect: _nobody,
        HTTPException: _no_such,
        500: _failure,
    }
    entrance = Entrance(wiring.tokens, wiring.say)
    return Guard(Starlette(routes=routes, exception_handlers=handlers), entrance, wiring.names)


class _Api:
    def __init__(self, wiring: Wiring) -> None:
        self._wiring, self._host, self._started = wiring, wiring.host, int(wiring.clock())

    async def health(self, request: Request) -> Response:
        """Whether it is up; to whoever may know, what it holds."""
        standing = self._host.standing
        word = "training" if standing.trains else "ok"
        if not request.scope["state"]["known"]:
            return _json({"status": word})
        about = {
            "status": word,
            "model": self._wiring.model,
            **self._learned(standing),
            "worker": standing.state,
            "answering": standing.answering,
            "waiting": standing.waiting,
            "memory_used_bytes": standing.used_bytes,
            "memory_budget_bytes": standing.limit_bytes,
        }
        return _json(about)

    async def models(self, request: Request) -> Response:
        """The one model, in a list."""
        return _json({"object": "list", "data": [self._about()]})

    async def model(self, request: Request) -> Response:
        """The one model."""
        self._require_model(request.path_params["model"])
        return _json(self._about())

    async def chat(self, request: Request) -> Response:
        """An answer."""
        seed = self._wiring.new_seed()
        asked = chat_asked(await _body(request), seed)
        self._require_model(asked.model)
        self._require_kind("chat")
        with contextlib.ExitStack() as leaving:
            ticket = leaving.enter_context(_asking(self._host, asked.generate, request.receive))
            parts = ticket.news()
            # Before the status is said: what is refused is refused with its own.
            first = await anext(parts)
            completion = self._completion(f"chatcmpl-{seed:016x}")
            if asked.stream:
                return EventStream(streamed(completion, asked.include_usage, first, parts), leaving.pop_all())
            return _json(completion.whole(*await whole(first, parts)))

    async def classify(self, request: Request) -> Response:
        """Labels with their probabilities, or scores."""
        asked = classify_asked(await _body(request))
        self._require_model(asked.model)
        self._require_kind("classification")
        with _asking(self._host, Classify(asked.texts), request.receive) as ticket:
            found = await anext(ticket.news())
            standing = self._host.standing
            assert isinstance(found, Classified) and standing.loaded is not None
            return _json(classification(found, standing.loaded, self._wiring.model, _fingerprint(standing)))

    def _completion(self, answer_id: str) -> Completion:
        created, fingerprint = int(self._wiring.clock()), _fingerprint(self._host.standing)
        return Completion(answer_id, created, self._wiring.model, fingerprint)

    def _about(self) -> dict[str, Any]:
        standing = self._host.standing
        about = {"id": self._wiring.model, "object": "model", "created": self._started, "owned_by": "fedkrso"}
        loaded = standing.loaded
        known: dict[str, Any] = {}
        if loaded is not None:
            known = {"kind": loaded.kind, "context_tokens": loaded.context_tokens}
        if loaded is not None and loaded.labels:
            known["labels"] = list(loaded.labels)
        return {**about, **self._learned(standing), **known}

    def _learned(self, standing: Standing) -> dict[str, Any]:
        held = standing.held
        if held is None:
            return {"run": None, "version": 0, "digest": None, "note": "nothing learned: the model as in its folder"}
        about = {"run": held.run, "node": held.node, "version": held.version, "digest": held.digest}
        return about if held.version else {**about, "note": "nothing learned yet: the base of the run"}

    def _require_model(self, name: str) -> None:
        if name not in ("", self._wiring.model):
            words = f"there is no model {name!r} here, only {self._wiring.model!r}"
            raise Refusal(404, words, param="model", code="model_not_found")

    def _require_kind(self, wanted: str) -> None:
        """Refuse what the model cannot do, where that is known already; else the worker does."""
        loaded = self._host.standing.loaded
        if loaded is not None:
            _refuse_kind(loaded, wanted)


def _refuse_kind(loaded: Loaded, wanted: str) -> None:
    """Refuse a request that another kind of model answers.

    Raises:
        Refusal: 400, which names the way that this model has.
    """
    if (loaded.kind == "chat") != (wanted == "chat"):
        way = "/v1/chat/completions" if loaded.kind == "chat" else "/v1/classify"
        raise Refusal(400, f"this model is one for {way}", code="wrong_kind")


@contextlib.contextmanager
def _asking(host: Host, command: Generate | Classify, receive: Receive) -> Iterator[Ticket]:
    """A place in line, left when the client is gone or has its answer."""
    ticket = host.ask(command)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ticket.leave()

    watching = asyncio.create_task(watch())
    try:
        yield ticket
    finally:
        watching.cancel()
        ticket.leave()


async def _body(request: Request) -> bytes:
    return await json_body(
        request,
        MOST_BODY_BYTES,
        not_json=Refusal(415, "a request is JSON: Content-Type: application/json"),
        too_large=Refusal(413, f"a request has at most {MOST_BODY_BYTES:,} bytes", code="body_too_large"),
    )


def _fingerprint(standing: Standing) -> str:
    held = standing.held
    return "base" if held is None else f"v{held.version}-{held.digest[:12]}"


async def _refused(_: Request, refusal: Refusal) -> Response:
    return _json(refusal.body(), refusal.status, refusal.headers)


async def _nobody(*_: object) -> Response:
    # Never seen: its client is gone.
    return Response(status_code=499)


async def _no_such(request: Request, error: HTTPException) -> Response:
    words = f"{request.method} is not for this" if error.status_code == 405 else "there is nothing here"
    return _json(Refusal(error.status_code, words).body(), error.status_code, dict(error.headers or {}))


async def _failure(request: Request, error: Exception) -> Response:
    # The traceback goes to the server's log.
    return _json(Refusal(500, f"the server failed at {request.url.path}: {type(error).__name__}").body(), 500)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
