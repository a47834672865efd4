# SPDX-License-Identifier: Apache-2.0
"""What each kind of failure means for a node."""

from __future__ import annotations

import pytest

from edge_client.agent.events import MustRest, WorkerFailed
from edge_client.agent.failures import event_of
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
    WorkerError,
)

FAILED, NOT_EQUAL = WorkerFailed("m", died=False), WorkerFailed("m", died=False, not_equal=True)


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
@pytest.mark.parametrize("loading", [True, False])
def test_what_the_owner_has_to_mend_ends_the_node(kind: type[FedkrsoError], loading: bool) -> None:
    assert event_of(kind("m"), loading=loading) is None


@pytest.mark.parametrize(
    ("kind", "while_loading", "later"),
    [
        (BudgetError, None, FAILED),
        (ExactnessError, None, NOT_EQUAL),
        (OutOfMemory, FAILED, FAILED),
        (WorkerError, FAILED, FAILED),
        (BaseDamaged, NOT_EQUAL, NOT_EQUAL),
    ],
)
def test_what_is_tried_again(
    kind: type[FedkrsoError], while_loading: WorkerFailed | None, later: WorkerFailed | None
) -> None:
    assert (event_of(kind("m"), loading=True), event_of(kind("m"), loading=False)) == (while_loading, later)


def test_a_damaged_artefact_is_fetched_again_and_a_full_disk_is_waited_for() -> None:
    assert event_of(ArtefactDamaged("m"), loading=True) == WorkerFailed("m", died=False, artefact_damaged=True)
    full = StorageError("the disk is full", place="node", remedy="free space there")
    assert event_of(full, loading=True) == MustRest("storage", "the disk is full (free space there)")
