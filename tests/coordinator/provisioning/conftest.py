# SPDX-License-Identifier: Apache-2.0
"""The broker that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import needs_mosquitto

from coordinator.provisioning.broker import LocalBroker
from tests.coordinator.provisioning.clients import USERS


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """One broker for the tests that change nothing about it."""
    needs_mosquitto()
    with LocalBroker(
        tmp_path_factory.mktemp("shared") / "broker", USERS, kind="mosquitto", tls=True, run="voice"
    ) as started:
        yield started
