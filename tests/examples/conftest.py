# SPDX-License-Identifier: Apache-2.0
"""A tiny model and texts, so that an example's run takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from workshop import Workshop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A random model of BERT's shape that knows twenty words."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's root as the working folder, from where examples are started."""
    monkeypatch.chdir(ROOT)
    return ROOT
