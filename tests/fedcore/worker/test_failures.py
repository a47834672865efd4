# SPDX-License-Identifier: Apache-2.0
"""Errors across the pipe: what comes out is what went in, or the nearest that this side knows."""

from __future__ import annotations

import msgspec
import pytest

import fedcore.errors
from fedcore.errors import DataError, FedkrsoError, WorkerError
from fedcore.worker.failures import error_of, failure_of
from fedcore.worker.messages import Event, Failed

TREE = [getattr(fedcore.errors, name) for name in fedcore.errors.__all__]


class _ColumnMissing(DataError):
    """Of a package that only the worker has."""

    exit_code = 99

    def __init__(self, column: str) -> None:
        super().__init__(f"no column {column!r}", place="rows.csv", remedy="set data.text")


class _Foreign(FedkrsoError):
    """Of a package that only the worker has, below none of the tree's branches."""


def crossed(error: FedkrsoError) -> FedkrsoError:
    """The error as the other side of a pipe has it."""
    event = msgspec.msgpack.decode(msgspec.msgpack.encode(failure_of(error)), type=Event)
    assert isinstance(event, Failed)
    return error_of(event)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_class_of_the_tree_crosses_as_itself(kind: type[FedkrsoError]) -> None:
    sent = kind("it is wrong", place="file: key", remedy="mend it")
    got = crossed(sent)
    assert type(got) is kind
    assert (got.message, got.place, got.remedy) == (sent.message, sent.place, sent.remedy)
    assert (got.exit_code, got.one_line()) == (sent.exit_code, sent.one_line())


def test_an_unknown_class_becomes_the_nearest_that_is_known() -> None:
    got = crossed(_ColumnMissing("text"))
    assert type(got) is DataError and got.exit_code == DataError.exit_code
    assert got.one_line() == "rows.csv: no column 'text' (set data.text)"


def test_an_error_that_has_nothing_near_is_the_worker_s() -> None:
    assert type(crossed(_Foreign("odd"))) is WorkerError
    assert type(error_of(Failed(("Odd", "FedkrsoError"), "odd", "", ""))) is WorkerError
    assert type(error_of(Failed((), "odd", "", ""))) is WorkerError
