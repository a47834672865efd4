# SPDX-License-Identifier: Apache-2.0
"""A worker that works is waited for, however slow the machine; one that hangs is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedcore.errors import WorkerError
from fedcore.system.processes import WORKER_PYTHON
from fedcore.worker.asking import ask_worker
from fedcore.worker.exchange import ImportModel, Written

# In place of an interpreter: its arguments are those of `-m edge_client.worker`.
STAND_IN = """#!{python}
import os, sys, time
sys.path[:0] = {path!r}
from fedcore.worker.exchange import Written
from fedcore.worker.process import write_message
{work}
with os.fdopen(int(sys.argv[-1]), "wb") as events:
    write_message(events, Written("as asked"))
"""
BUSY = "begun = time.process_time()\nwhile time.process_time() - begun < 2.5: pass"


@pytest.mark.parametrize(("work", "done"), [(BUSY, True), ("time.sleep(600)", False)], ids=["works", "hangs"])
def test_work_is_waited_for_and_idleness_is_not(
    work: str, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(STAND_IN.format(python=sys.executable, path=sys.path, work=work))
    program.chmod(0o700)
    monkeypatch.setenv(WORKER_PYTHON, str(program))
    if done:
        assert ask_worker(ImportModel("a", "b"), tmp_path / "log", quiet_seconds=1.0) == Written("as asked")
    else:
        with pytest.raises(WorkerError, match=r"log: the worker has done nothing for 1 s"):
            ask_worker(ImportModel("a", "b"), tmp_path / "log", quiet_seconds=1.0)
