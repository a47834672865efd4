# SPDX-License-Identifier: Apache-2.0
"""Who does not let others in: connections that say nothing, and guesses of a token."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fedcore.web import quiet
from fedcore.web.entrance import Entrance, TooManyGuesses
from fedcore.web.listening import listening
from fedcore.web.quiet import quiet_config
from fedcore.web.tokens import Tokens

RIGHT = "Bearer 0123456789abcdef"


def entrance(said: list[str], now: list[float]) -> Entrance:
    return Entrance(Tokens({"0123456789abcdef": "ann"}), said.append, lambda: now[0])


def test_guesses_wait_longer_and_longer_and_are_told() -> None:
    said, now, tried = list[str](), [0.0], 0
    own = entrance(said, now)
    for _ in range(3600 * 10):
        now[0] += 0.1
        try:
            assert own.operator("10.0.0.9", "Bearer guess") is None
            tried += 1
        except TooManyGuesses as error:
            assert 0 < error.seconds <= 60
    # Of 36,000 in an hour.
    assert tried < 90
    assert said[0] == "10 wrong tokens from 10.0.0.9: it has to wait after each" and len(said) == 1
    # Nobody else waits, and who waits hears it whatever it sends.
    assert own.operator("10.0.0.8", RIGHT) == "ann"
    with pytest.raises(TooManyGuesses):
        while True:
            own.operator("10.0.0.9", "Bearer guess")
    with pytest.raises(TooManyGuesses, match="wait"):
        own.operator("10.0.0.9", RIGHT)
    now[0] += 61
    assert own.operator("10.0.0.9", RIGHT) == "ann"


def test_no_token_is_no_guess() -> None:
    own = entrance([], [0.0])
    assert [own.operator("a", "") for _ in range(50)] == [None] * 50 and own.operator("a", RIGHT) == "ann"
    assert not Entrance(Tokens({}), print).operator("a", "Bearer x")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    import uvicorn

    monkeypatch.setattr(quiet, "HEADER_SECONDS", 0.5)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    server = uvicorn.Server(quiet_config(app, most_connections=20, stop_seconds=1))
    sock = listening("127.0.0.1", 0, what="it", place="x", remedy="y")
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    yield sock.getsockname()[1]
    server.should_exit = True
    thread.join(120)


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        return sock.recv(100)


def test_half_sent_requests_give_their_connections_back(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(40)]
    for sock in held:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: ")
    assert b" 503 " in ask(port)
    deadline = time.monotonic() + 120
    while b" 200 " not in ask(port):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert held[0].recv(100) == b""
    for sock in held:
        sock.close()


def test_a_connection_that_goes_on_is_kept(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        for _ in range(3):
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += sock.recv(200)
            assert b"200" in answer
            time.sleep(0.3)
        # A second request that does not come to its end is one too many.
        sock.sendall(b"GET / HT")
        time.sleep(0.8)
        assert sock.recv(100) == b""
