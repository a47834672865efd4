# SPDX-License-Identifier: Apache-2.0
"""A tiny model and texts for whole runs that take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from workshop import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A random model of BERT's shape that knows twenty words, and its schema."""
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def tiny_job(workshop: Workshop, tmp_path: Path) -> Path:
    """A job file for it, of two short rounds; its broker is nowhere."""
    path = tmp_path / "job.toml"
    path.write_text(f"""\
# Kept in the copy.
run = "tiny"
seed = 5

[model]
folder = "{workshop.model}"
schema_file = "{workshop.schema}"

[task]
kind = "text-classification"
labels = ["left", "right"]
max_length = 16

[head]
start = "random"

[method]
name = "fedkrso"
rank = 4
num_seeds = 2
interval_steps = 2
steps = 4
batch_size = 4

[round]
rounds = 2
min_nodes = 5
quorum = 5
cohort = 5
deadline_seconds = 200
finish_seconds = 60

[broker]
url = "mqtt://127.0.0.1:9"
insecure = true
""")
    return path


@pytest.fixture
def texts(workshop: Workshop) -> Path:
    """Twenty-four rows, half of them `left`."""
    return workshop.texts(0)
