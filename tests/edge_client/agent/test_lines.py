# SPDX-License-Identifier: Apache-2.0
"""What an agent says, in words and as events."""

from __future__ import annotations

from edge_client.agent import lines
from fedcore.errors import DataError
from fedcore.worker.messages import Trained
from fedcore.worker.process import WorkerDied


def test_a_trained_round_tells_what_lay_on_the_disk_already() -> None:
    line = lines.trained(Trained(3, "3.bin", 64, 0.5, 4.0004, restored=2, steps=40, batch_size=16))
    assert (
        line == "round 3 trained 40 steps of 16, drawn from 64 examples, in 4.0 s, 2 intervals from before, loss 0.500"
    )
    assert (line.event, line.round) == ("trained", 3)
    assert line.numbers == {"examples": 64, "steps": 40, "batch_size": 16, "seconds": 4.0, "loss": 0.5}


def test_a_worker_s_last_words_are_told_unless_it_was_killed() -> None:
    tail = "Traceback\nValueError: x"
    assert lines.worker_died(WorkerDied(1, 1, tail), "the worker ended") == "the worker ended: ValueError: x"
    assert lines.worker_died(WorkerDied(1, -9, tail), "the worker ended") == "the worker ended"


def test_a_failure_names_its_place_if_it_has_one() -> None:
    assert lines.worker_failed(DataError("no column text", place="data.csv")) == "data.csv: no column text"
    assert lines.worker_failed(DataError("no column text")) == "no column text"


def test_an_update_that_was_refused_is_a_warning() -> None:
    refused, committed = lines.update_gone(2, "late"), lines.update_gone(2, "")
    assert (refused, refused.event, refused.level) == ("update of round 2 refused: late", "refused", "warning")
    assert (committed, committed.event, committed.level) == ("update of round 2 committed", "committed", "info")
