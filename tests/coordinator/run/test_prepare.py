# SPDX-License-Identifier: Apache-2.0
"""What is found out of a job's model before its first round."""

from __future__ import annotations

from pathlib import Path

import msgspec
from plans import make_plan

from coordinator.job import Job
from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.worker.messages import Described

JOB = """
run = "r"
[model]
folder = "model"
schema_file = "schema.json"
[task]
kind = "instruction"
template = "chat.jinja"
learn = "last"
too_long = "cut"
[broker]
url = "mqtts://localhost:8883"
"""


def test_a_schema_file_leaves_the_jobs_words_about_conversations(tmp_path: Path) -> None:
    described = Described(make_plan().model_schema, TaskSection(kind="instruction", max_length=64))
    (tmp_path / "schema.json").write_bytes(msgspec.json.encode(described))
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    (tmp_path / "job.toml").write_text(JOB)
    job = load_config(tmp_path / "job.toml", Job)
    files = RunFolder(tmp_path / "r")
    files.root.mkdir()
    ledger = SqliteLedger(files.ledger)
    try:
        found = prepare(job, tmp_path, files, ledger).job.task
        assert prepare(job, tmp_path, files, ledger).job.task == found
    finally:
        ledger.close()
    assert (found.max_length, found.template, found.template_text) == (64, None, "{{ messages }}")
    assert (found.learn, found.too_long) == ("last", "cut")
