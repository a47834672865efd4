# SPDX-License-Identifier: Apache-2.0
"""Whoever adds a round's updates up comes to the same bits: one process, pieces in any cut and order, and real workers
over a real database, also where they are killed, fail, or are not there."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import make_plan

from coordinator.rounds.section import AggregationSection
from coordinator.store.folder import RunFolder
from coordinator.sums.adder import WorkersAdd
from fedcore.config.sections import TaskSection
from fedcore.errors import ExactnessError, UpdateRefused
from fedcore.methods import server_half
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.model.pieces import Cut, Piece, add_piece, cut_for, empty_sum, take_sum, write_sum
from fedcore.model.state import ExactState
from fedcore.model.update import Adder, HandedOut, WeightedUpdate, add_updates, write_update
from fedcore.numbers.accumulator import RunningSum, quantise_rows
from fedcore.numbers.clip import Clip
from fedcore.numbers.records import Record
from fedcore.round.checksums import checksums
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec
from tests.patience import until
from tests.postgres import Postgres

SCHEMA = ModelSchema(
    (LayerSpec("l", 40, 30), LayerSpec("k", 8, 30), LayerSpec("j", 24, 30)), (TensorSpec("head", (3, 5), False),)
)
HALF = server_half(FedKRSOSettings(rank=4, min_rank=2, num_seeds=6, steps=20, bits=8, published_bits=16))
NODES = 11


def the_plan() -> Plan:
    training = HALF.training(1, 5)
    sums = checksums(training, SCHEMA)
    return make_plan(task=TaskSection(kind="regression"), model_schema=SCHEMA, checksums=sums, training=training)


def made(folder: Path, nodes: int = NODES) -> list[WeightedUpdate]:
    """Updates in other subspaces, of other ranks, some of them scaled down."""
    plan, found = the_plan(), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(nodes):
        generator = np.random.default_rng(number)
        header = UpdateHeader(
            run="r",
            round=1,
            node=f"n{number}",
            version=0,
            examples=5 + number,
            rank=(2, 4)[number % 2],
            subspaces=tuple(sorted(generator.choice(6, 2, replace=False).tolist())),
            loss=1.0,
            seconds=1.0,
        )
        records = []
        for name, want in plan.training.expected(SCHEMA, header).items():
            values = (generator.normal(size=want.shape) * 10.0 ** generator.integers(-4, 1)).astype(np.float32)
            bits = want.coding.bits
            records.append(Record(name, quantise_rows(values, bits), bits))  # type: ignore[arg-type]
        write_update(folder / f"{number}.bin", header, records)
        clip = None if number % 3 else Clip(40_000 + number, 16)
        found.append(WeightedUpdate(folder / f"{number}.bin", header, 5 + number, clip))
    return found


def digest(updates: list[WeightedUpdate], adder: Adder) -> bytes:
    """Of the state after a round, all of its integers."""
    plan = the_plan()
    state = HALF.aggregate(ExactState.zero(plan.training, SCHEMA), plan, HandedOut(updates, adder))
    return b"".join(state.sums[name].tobytes() for name in sorted(state.sums))


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> list[WeightedUpdate]:
    return made(tmp_path_factory.mktemp("updates"))


def in_pieces(folder: Path, cut: Cut, order: Callable[[list[Piece]], list[Piece]]) -> Adder:
    def adder(updates: object, plan: Plan, total: RunningSum) -> None:
        listed: list[WeightedUpdate] = list(updates)  # type: ignore[call-overload]
        for update in listed:
            total.add_examples(update.weight)
        for piece in order(list(cut.pieces())):
            part = empty_sum(plan, cut.blocks[piece.block])
            add_piece(listed, plan, cut, piece, part)
            path = folder / f"{piece.block}-{piece.shard}"
            take_sum(path, write_sum(path, part), plan, cut.blocks[piece.block], total)

    return adder


@pytest.mark.parametrize("pieces", (1, 2, 5, 9, 40))
def test_pieces_in_any_order_come_to_the_sum(pieces: int, updates: list[WeightedUpdate], tmp_path: Path) -> None:
    plan = the_plan()
    shapes = plan.training.shapes(SCHEMA)
    names, whole = list(shapes), digest(updates, add_updates)
    by_blocks = Cut(tuple((name,) for name in names), -(-pieces // len(names)))
    for cut in (cut_for(shapes, len(updates), pieces), by_blocks):
        assert digest(updates, in_pieces(tmp_path, cut, lambda found: found[::-1])) == whole
        assert digest(updates[::-1], in_pieces(tmp_path, cut, lambda found: found)) == whole
    assert digest(updates[1:], add_updates) != whole


@given(st.lists(st.integers(1, 2500), min_size=1, max_size=12), st.integers(1, 40), st.integers(1, 60))
def test_a_cut_has_each_entry_and_update_once(sizes: list[int], updates: int, pieces: int) -> None:
    shapes = {f"entry {number}": (size, 1) for number, size in enumerate(sizes)}
    cut = cut_for(shapes, updates, pieces)
    assert [name for block in cut.blocks for name in block] == list(shapes) and all(cut.blocks)
    assert 1 <= cut.shards <= updates
    assert len(list(cut.pieces())) >= min(pieces, updates) or len(cut.blocks) * updates < pieces


def test_blocks_are_about_as_large_as_each_other() -> None:
    shapes = {str(number): (1000 + number, 1000) for number in range(48)}
    cut = cut_for(shapes, 2, 8)
    sizes = [sum(math.prod(shapes[name]) for name in block) for block in cut.blocks]
    assert len(sizes) * cut.shards >= 8 and max(sizes) < 1.3 * min(sizes)


def test_a_sum_with_another_byte_is_refused_and_nothing_of_it_added(
    tmp_path: Path, updates: list[WeightedUpdate]
) -> None:
    plan = the_plan()
    cut = cut_for(plan.training.shapes(SCHEMA), NODES, 1)
    part = empty_sum(plan, cut.blocks[0])
    add_piece(updates, plan, cut, Piece(0, 0), part)
    sha256 = write_sum(tmp_path / "sum", part)
    total = empty_sum(plan, cut.blocks[0])
    data = (tmp_path / "sum").read_bytes()
    for wrong in (data[:-1], data[:500] + bytes([data[500] ^ 1]) + data[501:], b""):
        (tmp_path / "sum").write_bytes(wrong)
        with pytest.raises(ExactnessError, match="other bytes"):
            take_sum(tmp_path / "sum", sha256, plan, cut.blocks[0], total)
    other = write_sum(tmp_path / "sum", empty_sum(plan, cut.blocks[0][:1]))
    with pytest.raises(ExactnessError, match="other entries"):
        take_sum(tmp_path / "sum", other, plan, cut.blocks[0], total)
    assert not any(array.any() for _, array in total.sums())


# With real workers


class Bench:
    """A run's folder, a database, and workers."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.postgres, self.files = postgres, RunFolder(folder / "runs" / "r")
        self.updates = made(self.files.updates / "1")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.log = folder / "log"
        self.said: list[str] = []

    def work(self, count: int) -> None:
        """Start so many workers; returns when they wait for work."""
        command = [sys.executable, "-m", "fedkrso", "coordinator", "worker", self.postgres.url]
        command += ["--password-file", str(self.postgres.password_file), "--runs", str(self.files.root.parent)]
        for _ in range(count):
            with self.log.open("ab") as log:
                self.workers.append(subprocess.Popen(command, stdout=log, stderr=log))
        wanted = len(self.workers)
        until(lambda: self.log.read_text().count("takes pieces") >= wanted, self.workers, said=self.log.read_text)

    def adder(self, pieces: int = 12, patience_seconds: float = 60.0) -> WorkersAdd:
        section = AggregationSection(pieces=pieces, least_numbers=0)
        database = self.postgres.database
        return WorkersAdd(section, self.files, database, self.said.append, patience_seconds=patience_seconds)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


@pytest.fixture
def bench(tmp_path: Path, postgres: Postgres) -> Iterator[Bench]:
    found = Bench(tmp_path, postgres)
    try:
        yield found
    finally:
        found.close()


def test_workers_come_to_the_same_bits_and_leave_nothing_behind(bench: Bench) -> None:
    whole = digest(bench.updates, add_updates)
    bench.work(2)
    adder = bench.adder()
    assert digest(bench.updates, adder) == whole and adder.taken >= 12
    # One is stopped while it holds a piece, and killed: the other takes that too.
    stopped, _ = bench.workers
    stopped.send_signal(signal.SIGSTOP)
    assert digest(bench.updates, adder) == whole
    stopped.kill()
    assert digest(bench.updates, adder) == whole and bench.said == []
    assert bench.postgres.sql("SELECT count(*) FROM fedkrso.pieces WHERE sha256 IS NULL AND failed IS NULL") == "0"
    assert not (bench.files.root / "sums").exists() and stopped.wait() == -signal.SIGKILL


def test_without_a_worker_the_coordinator_does_it(bench: Bench) -> None:
    adder = bench.adder(patience_seconds=0.0)
    assert digest(bench.updates, adder) == digest(bench.updates, add_updates)
    assert adder.taken == 0 and bench.said == []


def test_without_a_database_the_coordinator_does_it_and_says_so(bench: Bench) -> None:
    bench.postgres.kill()
    try:
        adder = bench.adder()
        assert digest(bench.updates, adder) == digest(bench.updates, add_updates)
        assert len(bench.said) == 1 and "added up here" in bench.said[0]
    finally:
        bench.postgres.start()


def test_a_small_round_is_handed_out_to_nobody(bench: Bench) -> None:
    adder = WorkersAdd(AggregationSection(), bench.files, msgspec.structs.replace(bench.postgres.database, url="x://"))
    assert digest(bench.updates, adder) == digest(bench.updates, add_updates)


def test_an_update_that_is_not_what_was_admitted_is_named(bench: Bench) -> None:
    bench.updates[3].path.write_bytes(bench.updates[3].path.read_bytes()[:-20])
    with pytest.raises(UpdateRefused, match="n3"):
        digest(bench.updates, add_updates)
    bench.work(1)
    with pytest.raises(UpdateRefused, match="n3"):
        digest(bench.updates, bench.adder())
