# SPDX-License-Identifier: Apache-2.0
"""The view in a file: at most once a second, never half of it, and the truth about who wrote it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from coordinator.store.view import NodeView, RunView
from coordinator.store.viewfile import ViewFile, Writer, read_view, running_coordinator
from fedcore.errors import RunError

VIEWS = """
import sys, time
from pathlib import Path
from coordinator.store.view import RunView
from coordinator.store.viewfile import ViewFile
with ViewFile(Path(sys.argv[1]), RunView("r", "fedkrso", 3, phase="open", round=2)):
    print("there", flush=True)
    time.sleep(60)
"""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def view(nodes: int = 2) -> RunView:
    return RunView("r", "fedkrso", 3, nodes={f"n{i}": NodeView(f"n{i}") for i in range(nodes)})


def test_hundreds_of_changes_a_second_are_one_file_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen, path = Clock(), view(300), tmp_path / "view.json"
    writes: list[float] = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (writes.append(clock.now), write(self, data))[1])
    with ViewFile(path, seen, clock=clock, monotonic=clock) as picture:
        for _ in range(2000):
            clock.now += 0.005
            seen.nodes["n0"].step += 1
            picture.show(seen)
        written = read_view(path)
        assert written is not None and 0 <= clock.now - written.view.written_at <= 1.0
        assert written.running and written.view.nodes["n0"].step > 1700
    assert 10 <= len(writes) <= 12
    assert all(later - earlier >= 0.99 for earlier, later in zip(writes[:-2], writes[1:-1], strict=True))
    assert not list(tmp_path.glob("*.new"))


def test_what_does_not_change_is_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(), view()
    writes: list[float] = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (writes.append(clock.now), write(self, data))[1])
    with ViewFile(tmp_path / "view.json", seen, clock=clock, monotonic=clock) as picture:
        for _ in range(300):
            clock.now += 0.1
            picture.show(seen)
        assert len(writes) <= 7
        # Its age says that the loop turns.
        written = read_view(tmp_path / "view.json")
        assert written is not None and written.age_seconds(clock.now) <= 6
        seen.round = 2
        clock.now += 1.0
        picture.show(seen)
        assert (read_view(tmp_path / "view.json") or written).view.round == 2


def test_the_end_is_told_with_the_line_it_ended_with(tmp_path: Path) -> None:
    path, seen = tmp_path / "view.json", view()
    with ViewFile(path, seen):
        seen.phase = "finished"
    last = read_view(path)
    assert last is not None and (last.ended, last.error, last.running, last.view.phase) == (
        "finished",
        "",
        False,
        "finished",
    )
    with pytest.raises(RunError), ViewFile(path, seen):
        raise RunError("no quorum", place="round 2", remedy="more nodes")
    last = read_view(path)
    assert last is not None and (last.ended, last.error) == ("failed", "round 2: no quorum (more nodes)")
    with pytest.raises(ZeroDivisionError), ViewFile(path, seen):
        raise ZeroDivisionError("a mistake\x1b[2J")
    last = read_view(path)
    assert last is not None and (last.ended, last.error) == ("failed", "ZeroDivisionError: a mistake?[2J")
    with pytest.raises(KeyboardInterrupt), ViewFile(path, seen):
        raise KeyboardInterrupt
    last = read_view(path)
    assert last is not None and last.ended == "interrupted" and last.running is False


def test_a_killed_coordinator_is_not_running_also_before_it_is_buried(tmp_path: Path) -> None:
    path = tmp_path / "view.json"
    process = subprocess.Popen([sys.executable, "-c", VIEWS, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        seen = read_view(path)
        assert seen is not None and seen.running and seen.writer.pid == process.pid
        assert running_coordinator(path, patience_seconds=0.0) == process.pid
        process.send_signal(signal.SIGKILL)
        # It is a zombie until somebody asks for its exit code.
        assert running_coordinator(path, patience_seconds=20.0) is None
        assert seen.running is False and seen.ended == ""
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_a_process_that_got_the_same_id_is_another_one() -> None:
    own = Writer.this()
    assert own.pid == os.getpid() and own.runs() is True
    assert msgspec.structs.replace(own, started=own.started - 1).runs() is False
    assert msgspec.structs.replace(own, pid=2**22 + 12345).runs() is False


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="Linux only")
def test_another_machine_or_container_cannot_be_looked_into() -> None:
    own = Writer.this()
    assert own.boot and own.namespace
    assert msgspec.structs.replace(own, boot="before the power cut").runs() is False
    assert msgspec.structs.replace(own, namespace=1).runs() is None
    assert msgspec.structs.replace(own, host="elsewhere").runs() is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"writer": {}}', b"\xff\xfe", b'{"writer": 3, "view": {}}']
)
def test_what_is_no_view_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "view.json"
    assert read_view(path) is None
    path.write_bytes(content)
    assert read_view(path) is None


BUSY = """
import sys
from pathlib import Path
from coordinator.store.view import NodeView, RunView
from coordinator.store.viewfile import ViewFile
seen = RunView("r", "fedkrso", 3, nodes={f"n{i}": NodeView(f"n{i}") for i in range(200)})
with ViewFile(Path(sys.argv[1]), seen, monotonic=iter(range(10**9)).__next__) as picture:
    print("there", flush=True)
    while True:
        seen.round += 1
        picture.show(seen)
"""


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "view.json"
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        until, seen = time.monotonic() + 1.0, set()
        while time.monotonic() < until:
            found = read_view(path)
            assert found is not None and len(found.view.nodes) == 200
            seen.add(found.view.round)
        assert len(seen) > 5
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    path, clock = tmp_path / "view.json", Clock()
    with ViewFile(path, view(), clock=clock, monotonic=clock) as picture:
        before = path.read_bytes()
        (tmp_path / "view.json.new").symlink_to("/dev/full")
        clock.now += 10
        picture.show(view(3))
        assert path.read_bytes() == before and not (tmp_path / "view.json.new").exists()
        clock.now += 10
        picture.show(view(3))
        assert len((read_view(path) or pytest.fail("no view")).view.nodes) == 3
