# SPDX-License-Identifier: Apache-2.0
"""What a command that failed means for a node: it tries again, it rests, or it ends because waiting would not mend
it."""

from __future__ import annotations

from edge_client.agent.events import MustRest, WorkerFailed
from fedcore.errors import (
    ArtefactDamaged,
    BaseDamaged,
    BudgetError,
    ConfigError,
    DataError,
    ExactnessError,
    FedkrsoError,
    ModelError,
    OutOfMemory,
    StorageError,
)

__all__ = ["event_of"]


def event_of(error: FedkrsoError, *, loading: bool) -> WorkerFailed | MustRest | None:
    """What the session is told of a command that failed; None if the node's own data, model or budget is wrong, so
    that it has to end.

    Args:
        error: Of the worker, or of the agent on the way to it.
        loading: Whether the worker was loading: what does not fit or is not exact then will not be another time.

    Example:
        >>> from fedcore.errors import DataError, OutOfMemory
        >>> event_of(OutOfMemory("out of memory on cuda:0"), loading=True)
        WorkerFailed(reason='out of memory on cuda:0', died=False, not_equal=False, artefact_damaged=False)
        >>> event_of(DataError("no column text"), loading=True) is None
        True
    """
    match error:
        case StorageError():
            return MustRest("storage", f"{error.message} ({error.remedy})")
        case ConfigError() | DataError() | ModelError():
            return None
        case ArtefactDamaged():
            return WorkerFailed(error.message, died=False, artefact_damaged=True)
        case OutOfMemory():
            # Of a device that others use too: it may have more another time.
            return WorkerFailed(error.message, died=False)
        case ExactnessError() | BudgetError() if loading and not isinstance(error, BaseDamaged):
            return None
        case _:
            return WorkerFailed(error.message, died=False, not_equal=isinstance(error, ExactnessError))
