# SPDX-License-Identifier: Apache-2.0
"""When objects lie in a store, when a plan says so, and when a store is left alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from plans import make_plan

from coordinator.objects.section import ObjectsSection
from coordinator.objects.shelf import Shelf
from fedcore.errors import StorageError
from fedcore.round.plan import Plan, StateObject
from fedcore.wire.files import manifest_of
from tests.patience import until


class _Recorded:
    """A store in memory that can fail, and says what was asked of it."""

    place = "store"

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.fails, self.asked, self.signed = False, 0, 0
        self.answers = threading.Event()
        self.answers.set()

    def _ask(self) -> None:
        assert self.answers.wait(60)
        self.asked += 1
        if self.fails:
            raise StorageError("does not serve", place=self.place)

    def put(self, name: str, path: Path) -> None:
        self._ask()
        self.held[name] = path.read_bytes()

    def names(self, prefix: str) -> Sequence[str]:
        self._ask()
        return [name for name in self.held if name.startswith(f"{prefix}/")]

    def drop(self, name: str) -> None:
        self._ask()
        self.held.pop(name, None)

    def address(self, name: str, hold_seconds: float) -> str:
        self.signed += 1
        return f"https://s3/{name}?{self.signed}"


class _Bench:
    def __init__(self, folder: Path, store: _Recorded | None = None) -> None:
        self.folder, self.store, self.now, self.notes = folder, store or _Recorded(), 0.0, list[str]()
        section = ObjectsSection(url="s3://bucket", least="1 KiB", hold_seconds=100.0)
        note = lambda kind, node, words: self.notes.append(words)  # noqa: E731
        self.shelf = Shelf(section, "run/id", note, lambda: self.now, opened=lambda section: self.store)

    def object(self, version: int, size: int = 2000) -> StateObject:
        path = self.folder / str(version)
        path.write_bytes(bytes([version]) * size)
        return StateObject(version, 0, None, "0" * 64, manifest_of(path, 1024))

    def takes(self, obj: StateObject) -> bool:
        until(lambda: self.shelf.settled([(self.folder / str(obj.version), obj.manifest)]))
        return self.shelf.has(obj.manifest)

    def plan(self, *objects: StateObject) -> Plan:
        plan = self.shelf.addressed(make_plan(objects=objects))
        # What is taken away goes beside.
        until(lambda: self.shelf.settled(()) and not self.shelf._aside.busy)
        return plan


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    return _Bench(tmp_path)


def test_large_objects_lie_there_once_and_a_plan_says_where(bench: _Bench) -> None:
    small, large = bench.object(1, 1000), bench.object(2)
    assert not bench.takes(small) and bench.store.asked == 0
    assert bench.takes(large) and bench.takes(large)
    assert list(bench.store.held) == [f"run/id/{large.manifest.sha256}"] and bench.store.asked == 2
    plan = bench.plan(small, large)
    assert plan.addresses == {large.manifest.sha256: f"https://s3/run/id/{large.manifest.sha256}?1"}


def test_what_an_earlier_life_put_there_is_not_put_again(bench: _Bench, tmp_path: Path) -> None:
    obj = bench.object(1)
    assert bench.takes(obj)
    again = _Bench(tmp_path, bench.store)
    before = bench.store.asked
    assert again.takes(obj) and bench.store.asked == before + 1


def test_what_no_plan_names_goes_after_the_next_one(bench: _Bench) -> None:
    one, two, three = (bench.object(version) for version in (1, 2, 3))
    for obj in (one, two, three):
        assert bench.takes(obj)
        plan = bench.plan(obj)
        # Announced once more, after a reconnect.
        assert bench.plan(obj).addresses.keys() == plan.addresses.keys() == {obj.manifest.sha256}
    assert sorted(bench.store.held) == sorted(f"run/id/{obj.manifest.sha256}" for obj in (two, three))


def test_a_store_that_fails_is_left_alone_for_a_while_and_named_nowhere(bench: _Bench) -> None:
    one, two = bench.object(1), bench.object(2)
    assert bench.takes(one) and bench.plan(one).addresses
    bench.store.fails = True
    assert not bench.takes(two)
    asked = bench.store.asked
    assert not bench.takes(two) and bench.store.asked == asked
    assert bench.plan(one, two).addresses == {} and not bench.shelf.due
    bench.store.fails, bench.now = False, 61.0
    assert bench.shelf.due, "the last plan names nothing of what lies there"
    assert bench.takes(two) and len(bench.plan(one, two).addresses) == 2
    assert [note.partition(" ")[0] for note in bench.notes] == ["store:", "store:"] and "again" in bench.notes[1]


def test_a_slow_store_holds_nobody_up_and_is_asked_for_one_thing_at_a_time(bench: _Bench) -> None:
    one, two = bench.object(1), bench.object(2)
    files = [(bench.folder / str(obj.version), obj.manifest) for obj in (one, two)]
    bench.store.answers.clear()
    assert not any(bench.shelf.settled(files) for _ in range(5)) and not bench.shelf.has(one.manifest)
    assert bench.store.asked == 0 and bench.shelf.addressed(make_plan(objects=(one, two))).addresses == {}
    bench.store.answers.set()
    until(lambda: bench.shelf.settled(files))
    assert bench.store.asked == 3 and len(bench.plan(one, two).addresses) == 2


def test_what_could_not_be_taken_away_is_taken_away_later(bench: _Bench) -> None:
    one, two, three = (bench.object(version) for version in (1, 2, 3))
    for obj in (one, two, three):
        assert bench.takes(obj)
        bench.store.fails = obj is three
        bench.plan(obj)
    assert len(bench.store.held) == 3 and "does not serve" in bench.notes[0]
    bench.store.fails, bench.now = False, 61.0
    bench.plan(three)
    assert len(bench.store.held) == 2


def test_addresses_are_renewed_before_they_run_out(bench: _Bench) -> None:
    obj = bench.object(1)
    assert not bench.shelf.due and bench.takes(obj)
    first = bench.plan(obj)
    bench.now = 49.0
    assert not bench.shelf.due
    bench.now = 51.0
    assert bench.shelf.due
    assert bench.shelf.addressed(first).addresses != first.addresses and not bench.shelf.due


def test_without_a_section_nothing_is_taken_and_nothing_said(tmp_path: Path) -> None:
    obj = _Bench(tmp_path).object(1)
    shelf = Shelf(None, "run/id", lambda *told: pytest.fail(str(told)), lambda: 0.0)
    plan = make_plan(objects=(obj,))
    assert shelf.settled([(tmp_path / "1", obj.manifest)]) and not shelf.has(obj.manifest)
    assert shelf.addressed(plan) is plan and not shelf.due
