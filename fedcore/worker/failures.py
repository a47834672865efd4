# SPDX-License-Identifier: Apache-2.0
"""Errors across the pipe: a worker's error becomes a message, and the message the very error again.

What crosses is the names of the error's classes, nearest first. The other side raises the first one that it knows, so
that an error of a package that only the worker has arrives as the class of the tree that it is made of. Exit codes do
not cross: they belong to the class.
"""

from __future__ import annotations

from fedcore.errors import FedkrsoError, WorkerError
from fedcore.worker.messages import Failed

__all__ = ["error_of", "failure_of"]


def failure_of(error: FedkrsoError) -> Failed:
    """The message that says that a command failed with this error.

    Example:
        >>> from fedcore.errors import BaseDamaged
        >>> failure_of(BaseDamaged("other bytes", place="base.bin")).kinds
        ('BaseDamaged', 'ExactnessError', 'FedkrsoError')
    """
    kinds = tuple(kind.__name__ for kind in type(error).__mro__ if issubclass(kind, FedkrsoError))
    return Failed(kinds, error.message, error.place, error.remedy)


def error_of(failed: Failed) -> FedkrsoError:
    """The error that a message tells of: of its own class, or of the nearest of its bases that is known here; a
    `WorkerError` where none is.

    Example:
        >>> error = error_of(Failed(("ColumnMissing", "DataError", "FedkrsoError"), "no column 'text'", "rows.csv", ""))
        >>> type(error).__name__, error.exit_code, error.place
        ('DataError', 3, 'rows.csv')
    """
    known = _known()
    kind = next((known[name] for name in failed.kinds if name in known), WorkerError)
    if kind is FedkrsoError and failed.kinds[0] != kind.__name__:
        # Nothing nearer than the root is known here: it was the worker that failed.
        kind = WorkerError
    return kind(failed.message, place=failed.place, remedy=failed.remedy)


def _known() -> dict[str, type[FedkrsoError]]:
    """The tree's classes by name: those of `fedcore.errors` only, whose constructors are alike."""
    found: dict[str, type[FedkrsoError]] = {}
    rest = [FedkrsoError]
    while rest:
        kind = rest.pop()
        if kind.__module__ == FedkrsoError.__module__:
            found[kind.__name__] = kind
        rest += kind.__subclasses__()
    return found
