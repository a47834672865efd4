# SPDX-License-Identifier: Apache-2.0
"""What is found out of a job's model before its first round."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from plans import make_plan

from coordinator.job import Job
from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import SqliteLedger
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError
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


MEASURED = """
[evaluation]
source = "rows.jsonl"
metrics = ["json_equality"]
best_by = "json_equality"
max_new_tokens = {tokens}
"""


def test_metrics_of_texts_are_for_tasks_that_write(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    text = JOB.replace('template = "chat.jinja"\n', "")
    path.write_text(text + MEASURED.format(tokens=64))
    found = load_config(path, Job)
    assert found.evaluation is not None and found.evaluation.best_name == "json_equality"
    asked = msgspec.structs.replace(found.evaluation, where="nodes").asked(found.task, 1)
    assert asked is not None and (asked.metrics, asked.max_new_tokens) == (
        ("token_accuracy", "json_equality"),
        64,
    )
    path.write_text(text + MEASURED.format(tokens=0))
    with pytest.raises(ConfigError, match=r"max_new_tokens is 0, it must be at least 1"):
        load_config(path, Job)
    labels = re.sub(
        r"kind = .*?(?=\[broker)", 'kind = "text-classification"\nlabels = ["a", "b"]\n', text, flags=re.DOTALL
    )
    path.write_text(labels + MEASURED.format(tokens=64))
    with pytest.raises(
        ConfigError, match=r"'json_equality' compares texts, and a model for text-classification writes"
    ):
        load_config(path, Job)


def test_a_schema_file_leaves_the_jobs_words_about_conversations(tmp_path: Path) -> None:
    notes = ("a head is there already",)
    described = Described(make_plan().model_schema, TaskSection(kind="instruction", max_length=64), notes)
    (tmp_path / "schema.json").write_bytes(msgspec.json.encode(described))
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    (tmp_path / "job.toml").write_text(JOB)
    job = load_config(tmp_path / "job.toml", Job)
    files = RunFolder(tmp_path / "r")
    files.root.mkdir()
    ledger = SqliteLedger(files.ledger)
    try:
        first, again = (prepare(job, tmp_path, files, ledger) for _ in range(2))
        found = first.job.task
        assert again.job.task == found and first.notes == again.notes == notes
    finally:
        ledger.close()
    assert (found.max_length, found.template, found.template_text) == (64, None, "{{ messages }}")
    assert (found.learn, found.too_long) == ("last", "cut")


def test_an_adapter_needs_its_tensors_in_a_schema_file_and_answers_need_none(tmp_path: Path) -> None:
    described = Described(make_plan().model_schema, TaskSection(kind="instruction", max_length=64))
    (tmp_path / "schema.json").write_bytes(msgspec.json.encode(described))
    text = JOB.replace('template = "chat.jinja"\n', "").replace('learn = "last"\ntoo_long = "cut"\n', "")
    method = '[method]\nname = "fedavg-peft"\npeft = {{ type = "{}" }}\n'
    path = tmp_path / "job.toml"
    path.write_text(text + method.format("ia3") + MEASURED.format(tokens=64))
    job = load_config(path, Job)
    files = RunFolder(tmp_path / "r")
    files.root.mkdir()
    ledger = SqliteLedger(files.ledger)
    try:
        with pytest.raises(ConfigError, match="was made for no adapter") as raised:
            prepare(job, tmp_path, files, ledger)
    finally:
        ledger.close()
    assert 'model describe --peft \'{"type":"ia3"' in raised.value.remedy
    path.write_text(text + method.format("prompt") + MEASURED.format(tokens=64))
    with pytest.raises(ConfigError, match="'json_equality' needs answers: its virtual tokens have no place"):
        load_config(path, Job)
    path.write_text(text.replace("[broker]", "pack = true\n[broker]", 1) + method.format("prompt"))
    with pytest.raises(ConfigError, match="virtual tokens stand before one text"):
        load_config(path, Job)
