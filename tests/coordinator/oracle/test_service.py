# SPDX-License-Identifier: Apache-2.0
"""What the oracle tells its worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import coordinator.oracle.service as service
from coordinator.job import Job
from coordinator.oracle.service import Oracle
from fedcore.config.reading import load_config
from fedcore.worker.parts import LoadPart, PartLoaded

JOB = 'run = "r"\n[model]\nfolder = "m"\n[task]\nkind = "text-classification"\nlabels = ["off", "on"]\n[broker]\nurl = "mqtt://127.0.0.1:1"\ninsecure = true\n'


class Worker:
    """Says that it has loaded whatever it is told to."""

    told: list[LoadPart] = []

    def __init__(self, say: Callable[[Any], None], log: Path) -> None:
        self._say = say

    def send(self, command: LoadPart) -> None:
        self.told.append(command)
        self._say(PartLoaded(front="f", labels=("off", "on"), width=8, max_length=16))


@pytest.mark.parametrize(("threads", "had"), [(1, 1), (3, 3), (0, os.cpu_count() or 1)])
def test_the_large_model_has_as_many_threads_as_asked(
    threads: int, had: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "WorkerProcess", Worker)
    (tmp_path / "job.toml").write_text(JOB)
    transport: Any = object()
    oracle = Oracle(load_config(tmp_path / "job.toml", Job), tmp_path / "oracle", transport=transport)
    assert oracle.load(tmp_path / "m", 2, 1, threads).labels == ("off", "on")
    assert Worker.told[-1].threads == had
