# SPDX-License-Identifier: Apache-2.0
"""A job whose head begins with sums, as text, and what its model's head would be."""

from __future__ import annotations

from pathlib import Path

from coordinator.job import Job
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.weights.schema import TensorSpec

JOB = """
run = "r"
[model]
folder = "model"
schema_file = "schema.json"
[task]
kind = "text-classification"
labels = ["a", "b"]
[method]
name = "fedkrso"
[head]
start = "ridge"
[round]
min_nodes = 3
quorum = 3
[broker]
url = "mqtts://localhost:8883"
"""
TASK = TaskSection(kind="text-classification", labels=("a", "b"))
WEIGHT, BIAS = TensorSpec("classifier.weight", (2, 8), False), TensorSpec("classifier.bias", (2,), False)


def read(tmp_path: Path, text: str) -> Job:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return load_config(path, Job)
