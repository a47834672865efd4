# SPDX-License-Identifier: Apache-2.0
"""The server's HTTP interface: every request in one short function. docs/server.md tells it."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from coordinator.dashboard.guard import Guard
from coordinator.job import Job
from coordinator.server.metrics import server_exposition, targets
from coordinator.server.roles import Doorkeeper, Person, Role
from coordinator.server.service import Server
from fedcore.config.words import converted
from fedcore.errors import FedkrsoError
from fedcore.fields.prepared import prepared
from fedcore.web.bodies import json_body
from fedcore.web.entrance import TooManyGuesses
from fedcore.web.names import is_our_page

__all__ = ["Lobby", "make_server_app"]

T = TypeVar("T")
_ANSWER_SECONDS = 30.0
_MOST_BODY_BYTES = 2**20
_MOST_LOG_BYTES = 2**18
_MOST_LOOKERS = 1000
_STATUS = {2: 400, 3: 400, 4: 400, 10: 409}
_COOKIE = "fedkrso_look"


@dataclass
class Lobby:
    """Who may come in.

    Attributes:
        door: Says who asks.
        open_to_all: Whether whoever reaches the address may look.
        names: Host names of a reverse proxy.
        lookers: Of a cookie, whom it stands for. A browser's stream of events sends no header; the cookie lets look
            and nothing else, and is forgotten when the server ends.
    """

    door: Doorkeeper
    open_to_all: bool = False
    names: tuple[str, ...] = ()
    lookers: OrderedDict[str, Person] = field(default_factory=OrderedDict)

    def person(self, request: Request) -> Person | None:
        """Who asks.

        Raises:
            HTTPException: The address has guessed too often.
        """
        address = request.client.host if request.client is not None else ""
        try:
            return self.door.person(address, dict(request.headers))
        except TooManyGuesses as error:
            raise HTTPException(429, str(error), {"retry-after": str(math.ceil(error.seconds))}) from None

    def require(self, request: Request, role: Role) -> Person:
        """Who asks, and may do what a role may.

        Raises:
            HTTPException: They may not.
        """
        person = self.person(request)
        if person is None and role == "viewer":
            person = self.lookers.get(request.cookies.get(_COOKIE, ""))
            if person is None and self.open_to_all:
                person = Person("anybody", "viewer")
        if person is None:
            raise HTTPException(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})
        if not person.may(role):
            raise HTTPException(403, f"{person.name} is {person.role}: this is for {role}s")
        return person

    def remember(self, person: Person) -> str:
        """A cookie's value that lets somebody look."""
        value = secrets.token_urlsafe(24)
        self.lookers[value] = person
        if len(self.lookers) > _MOST_LOOKERS:
            self.lookers.popitem(last=False)
        return value

    def require_own_page(self, request: Request) -> None:
        """Refuse what a stranger's page has a browser send.

        Raises:
            HTTPException: It is not ours.
        """
        origin = request.headers.get("origin")
        if origin is not None and not is_our_page(origin, request.headers.get("host", ""), self.names):
            raise HTTPException(403, "commands come from the server's own page only")


class _Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    job: dict[str, Any]


def make_server_app(server: Server, lobby: Lobby, more: list[Any] | None = None) -> ASGIApp:
    """The application, guarded.

    Args:
        server: Whom it asks.
        lobby: Who may ask.
        more: Further routes: pages.
    """
    api = _Api(server, lobby)
    routes = [
        Route("/api/runs", api.runs, methods=["GET"]),
        Route("/api/runs", api.submit, methods=["POST"]),
        Route("/api/nodes", api.nodes),
        Route("/api/runs/{run}/stop", api.stop, methods=["POST"]),
        Route("/api/runs/{run}/log", api.log),
        Route("/api/session", api.session, methods=["GET", "POST"]),
        Route("/api/targets", api.targets),
        Route("/metrics", api.metrics),
        Route("/healthz", api.healthz),
        *(more or []),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        HTTPException: _refusal,
        FedkrsoError: _failed,
        500: _fault,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), lobby.names)


class _Api:
    def __init__(self, server: Server, lobby: Lobby) -> None:
        self._server, self._lobby = server, lobby

    async def runs(self, request: Request) -> Response:
        """All runs."""
        self._lobby.require(request, "viewer")
        return _json({"runs": await _answer(self._server.rows())})

    async def nodes(self, request: Request) -> Response:
        """All nodes of the fleet."""
        self._lobby.require(request, "viewer")
        return _json({"nodes": await _answer(self._server.nodes())})

    async def metrics(self, request: Request) -> Response:
        """Runs and nodes for Prometheus."""
        self._lobby.require(request, "viewer")
        rows, nodes = await _answer(self._server.rows()), await _answer(self._server.nodes())
        data = server_exposition(rows, nodes)
        return Response(data, headers={"cache-control": "no-store", "content-type": CONTENT_TYPE_LATEST})

    async def targets(self, request: Request) -> Response:
        """Where Prometheus finds each run's own."""
        self._lobby.require(request, "viewer")
        host = request.headers.get("host", "")
        rows = await _answer(self._server.rows())
        return _json(targets(rows, host))

    async def submit(self, request: Request) -> Response:
        """Queue a run."""
        self._lobby.require_own_page(request)
        person = self._lobby.require(request, "operator")
        try:
            raw = msgspec.json.decode(await _body(request), type=_Submission).job
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"not a job: {error}") from None
        # Names a function that is called, or a file that is read, as this user: whoever submits is trusted with that.
        job = await asyncio.to_thread(converted, raw, prepared(Job), place="the job")
        entry = await _answer(self._server.submit(job, person.name))
        return _json({"run": entry.run, "state": entry.state, "number": entry.number}, 202)

    async def stop(self, request: Request) -> Response:
        """Stop a run."""
        self._lobby.require_own_page(request)
        person = self._lobby.require(request, "operator")
        await _body(request)
        others = person.may("owner")
        return _json(
            {"said": await _answer(self._server.end_run(request.path_params["run"], person.name, others=others))}, 202
        )

    async def log(self, request: Request) -> Response:
        """What a run's process said, from a byte of its log on."""
        self._lobby.require(request, "viewer")
        run, after = request.path_params["run"], _number(request, "after")
        rows = {row.run: row for row in await _answer(self._server.rows())}
        if run not in rows:
            raise HTTPException(404, f"no run {run!r} was submitted")
        data, at = await asyncio.to_thread(_read, self._server.files.log(run), after)
        return _json({"text": data.decode("utf-8", "replace"), "next": at, "state": rows[run].state})

    async def session(self, request: Request) -> Response:
        """What whoever asks may do; asked for by POST, a cookie that lets look."""
        person = self._lobby.person(request)
        known = person or self._lobby.lookers.get(request.cookies.get(_COOKIE, ""))
        look = known is not None or self._lobby.open_to_all
        answer = _json(
            {"name": known.name if known else "", "role": person.role if person else "", "look": look},
        )
        if request.method == "POST" and person is not None:
            self._lobby.require_own_page(request)
            secure = request.headers.get("x-forwarded-proto", "") == "https"
            value = self._lobby.remember(person)
            answer.set_cookie(_COOKIE, value, httponly=True, samesite="strict", secure=secure)
        return answer

    async def healthz(self, request: Request) -> Response:
        """Whether the server's loop turns."""
        rows = await _answer(self._server.rows())
        return _json({"status": "ok", "running": sum(row.state == "running" for row in rows)})


async def _answer(asked: Future[T]) -> T:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(asked), _ANSWER_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(503, f"the server's loop has not answered for {_ANSWER_SECONDS:.0f} s") from None


async def _body(request: Request) -> bytes:
    return await json_body(
        request,
        _MOST_BODY_BYTES,
        not_json=HTTPException(415, "a command is JSON: Content-Type: application/json"),
        too_large=HTTPException(413, f"a job has at most {_MOST_BODY_BYTES} bytes"),
    )


def _read(path: Path, after: int) -> tuple[bytes, int]:
    """Whole lines of a log from a byte on; and the byte to go on from."""
    try:
        with path.open("rb") as file:
            file.seek(after)
            data = file.read(_MOST_LOG_BYTES)
    except OSError:
        return b"", after
    whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == _MOST_LOG_BYTES else b"")
    return whole, after + len(whole)


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 16:
        raise HTTPException(400, f"{name} is a whole number")
    return int(text)


async def _refusal(request: Request, error: HTTPException) -> Response:
    words = {404: "there is nothing here", 405: f"{request.method} is not for this"}
    plain = error.detail in ("Not Found", "Method Not Allowed")
    text = words[error.status_code] if plain else error.detail
    return _json({"error": text}, error.status_code, dict(error.headers or {}))


async def _failed(_: Request, error: FedkrsoError) -> Response:
    return _json({"error": error.one_line(), "exit_code": error.exit_code}, _STATUS.get(error.exit_code, 503))


async def _fault(request: Request, error: Exception) -> Response:
    # The traceback goes to the server's log.
    return JSONResponse({"error": f"the server failed at {request.url.path}: {type(error).__name__}"}, 500)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
