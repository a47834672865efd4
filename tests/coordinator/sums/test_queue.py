# SPDX-License-Identifier: Apache-2.0
"""Pieces in a real database: each has one worker at a time, and another one when that is gone."""

from __future__ import annotations

import contextlib

import pytest

from coordinator.sums.queue import Queue
from fedcore.errors import RunError
from fedcore.model.pieces import Piece
from tests.patience import until
from tests.postgres import Postgres

_AT_WORK = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
PIECES = [Piece(0, 0), Piece(0, 1), Piece(1, 0)]


def test_a_piece_has_one_worker_and_another_when_that_is_gone(postgres: Postgres) -> None:
    with contextlib.ExitStack() as stack:
        coordinator, one, two = (stack.enter_context(Queue(postgres.database)) for _ in range(3))
        coordinator.hand_out("queued", "task", "0" * 64, PIECES)
        with pytest.raises(RunError), one.claimed(["queued"]) as first:
            assert first is not None and first.piece == PIECES[0] and (first.run, first.task) == ("queued", "task")
            with two.claimed(["queued"]) as second:
                assert second is not None and second.piece == PIECES[1]
                second.sha256 = "1" * 64
            # As a kill does.
            one._db.pgconn.finish()
            until(lambda: postgres.sql(_AT_WORK) == "0")
            with two.claimed(["queued"], "task") as again:
                assert again is not None and again.piece == first.piece
                again.failed = "it does not work"
        with two.claimed(["other"]) as nothing:
            assert nothing is None
        with pytest.raises(ZeroDivisionError), two.claimed(["queued"]):
            raise ZeroDivisionError
        with two.claimed(["queued"]) as third:
            assert third is not None and third.piece == PIECES[2]
            coordinator.drop("queued")
            assert coordinator.ended("task") == []
            third.sha256 = "2" * 64
        # It was held while all others were dropped.
        assert coordinator.ended("task") == [(PIECES[2], "2" * 64)]
        coordinator.drop("queued")
        assert postgres.sql("SELECT count(*) FROM fedkrso.pieces WHERE run = 'queued'") == "0"


def test_a_piece_that_kills_its_workers_is_left_to_the_coordinator(postgres: Postgres) -> None:
    with Queue(postgres.database) as queue:
        queue.hand_out("queued", "task", "0" * 64, PIECES[:1])
        taken = 0
        while True:
            with contextlib.suppress(ZeroDivisionError), queue.claimed(["queued"]) as claim:
                if claim is None:
                    break
                taken += 1
                raise ZeroDivisionError
        assert taken == 5
        with queue.claimed(["queued"], "task") as claim:
            assert claim is not None
            claim.failed = "the coordinator did it"
        assert queue.ended("task") == [(PIECES[0], None)]
        queue.drop("queued")
