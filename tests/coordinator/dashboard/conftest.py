# SPDX-License-Identifier: Apache-2.0
"""The dashboard that the tests of this folder ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.store.ledger import SqliteLedger
from tests.coordinator.dashboard.site import TOKEN, Site, served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    for number in range(5):
        ledger.note(float(number), "refused", "b", f"late {number}", 2)
    ledger.close()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# who may\nalice {TOKEN}\n0123456789abcdef-operator\n")
    tokens.chmod(0o600)
    return tmp_path


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    with served(folder) as found:
        yield found
