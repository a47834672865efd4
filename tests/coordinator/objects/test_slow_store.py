# SPDX-License-Identifier: Apache-2.0
"""A store that takes its time holds back the plan that names its objects, and nothing else."""

from __future__ import annotations

import contextlib
import queue
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.job import SafetySection
from coordinator.objects.folder import FolderStore
from coordinator.objects.section import ObjectsSection
from coordinator.store.view import RunView
from fedcore.round.plan import Plan
from tests.coordinator.messages.one_round import HONEST, WAIT_SECONDS, Killed, Run
from tests.patience import until
from tests.s3 import S3, needs_s3


class _Held(Run):
    """A run whose store does not answer before it is let go, when a state is to lie there."""

    def __init__(self, root: Path, section: ObjectsSection, store: threading.Event) -> None:
        super().__init__(root)
        self.objects, self.store, self.first = section, store, list[Plan]()
        self.dies, self.silent = False, 0
        self.observe = self._observe

    def _observe(self, view: RunView) -> None:
        if view.phase == "closing" and view.digest:
            # The round is closed in the ledger, and its state on the way.
            self.silent += 1
            if self.dies:
                raise Killed

    def _plan(self, plans: queue.Queue[Plan], ended: queue.Queue[object]) -> Plan:  # type: ignore[override]
        if self.first and not self.store.is_set():
            if self.dies:
                error = ended.get(timeout=WAIT_SECONDS)
                assert isinstance(error, Killed), error
                raise error
            until(lambda: self.silent >= 3)
            # Asked again, it says again that it has this update.
            assert self.nodes["good-1"].send(self.first[0], self.files.root / "again", HONEST["good-1"]) == ""
            assert plans.empty() and self.silent >= 3
            self.store.set()
        self.first.append(Run._plan(plans, ended))
        return self.first[-1]


def _goes_on(run: _Held, plain: Run) -> None:
    assert set(run.go(HONEST, SafetySection()).values()) == {""}
    plain.go(HONEST, SafetySection())
    assert run.view.digest == plain.view.digest != ""
    last = run.first[-1]
    assert last.phase == "finished" and last.addresses.keys() == {obj.manifest.sha256 for obj in last.objects}
    for one in (run, plain):
        one.ledger.close()


@pytest.fixture
def slow_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ObjectsSection, threading.Event]:
    store, put = threading.Event(), FolderStore.put

    def slowly(self: FolderStore, name: str, path: Path) -> None:
        assert store.wait(WAIT_SECONDS)
        put(self, name, path)

    monkeypatch.setattr(FolderStore, "put", slowly)
    section = ObjectsSection(url=(tmp_path / "served").as_uri(), public="https://files.example.org", least="0B")
    return section, store


def test_the_coordinator_answers_while_a_state_is_put(slow_folder: Any, tmp_path: Path) -> None:
    _goes_on(_Held(tmp_path / "held", *slow_folder), Run(tmp_path / "plain"))


def test_a_coordinator_that_is_killed_while_a_state_is_put_goes_on_to_the_same_digest(
    slow_folder: Any, tmp_path: Path
) -> None:
    run, plain = _Held(tmp_path / "held", *slow_folder), Run(tmp_path / "plain")
    run.dies = True
    with pytest.raises(Killed):
        run.go(HONEST, SafetySection())
    assert len(run.ledger.rounds()) == 1 and len(run.first) == 1
    run.dies, run.first = False, []
    run.store.set()
    run.go({}, SafetySection(), idle=HONEST)
    plain.go(HONEST, SafetySection())
    assert run.view.digest == plain.view.digest != "" and run.first[-1].addresses
    for one in (run, plain):
        one.ledger.close()


class _Gate(socketserver.BaseRequestHandler):
    """Passes a link on when it is let."""

    def handle(self) -> None:
        server: Any = self.server
        assert server.gate.wait(WAIT_SECONDS)
        with socket.create_connection(("127.0.0.1", server.behind)) as other:
            back = threading.Thread(target=_pass, args=(other, self.request), daemon=True)
            back.start()
            _pass(self.request, other)
            back.join()


def _pass(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


@pytest.fixture
def slow_s3() -> Iterator[tuple[ObjectsSection, threading.Event]]:
    needs_s3()
    with S3() as s3, socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Gate) as proxy:
        proxy.daemon_threads = True
        proxy.gate, proxy.behind = threading.Event(), s3.port  # type: ignore[attr-defined]
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        yield msgspec.structs.replace(s3.settings(), endpoint=address), proxy.gate  # type: ignore[attr-defined]
        proxy.shutdown()


@pytest.mark.slow
def test_the_coordinator_answers_while_a_slow_s3_takes_a_state(slow_s3: Any, tmp_path: Path) -> None:
    _goes_on(_Held(tmp_path / "held", *slow_s3), Run(tmp_path / "plain"))
