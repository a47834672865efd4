# SPDX-License-Identifier: Apache-2.0
"""`fedkrso data check`: what training would see, in words, and every row that it would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edge_client.commands.data import data_check
from fedcore.errors import ConfigError, DataError

NODE = """
node = "a"
run = "r"
model_folder = "{model}"
[data]
source = "rows.jsonl"
[broker]
url = "mqtts://localhost:8883"
"""
JOB = """
run = "r"
[task]
kind = "instruction"
max_length = 60
template = "chat.jinja"
too_long = "cut"
"""
TEMPLATE = """{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}
{%- if m.role == "assistant" %}{{ eos_token }}{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
LONG = "word " * 60


def written(tmp_path: Path, model: Path, *rows: str) -> list[str]:
    (tmp_path / "node.toml").write_text(NODE.format(model=model))
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return [str(tmp_path / "node.toml"), "--job", str(tmp_path / "job.toml")]


def pair(prompt: str, completion: str) -> str:
    return json.dumps({"prompt": prompt, "completion": completion})


def checked(*arguments: str) -> Result:
    return CliRunner().invoke(data_check, list(arguments))


@pytest.fixture
def stories(shared_folder: Path) -> Path:
    return shared_folder / "models" / "stories260K"


def test_what_is_learned_stands_in_marks(tmp_path: Path, stories: Path) -> None:
    rows = [pair("Hi", "Hello you"), json.dumps({"text": "A story"}), pair(LONG, "yes"), pair("why", LONG)]
    found = checked(*written(tmp_path, stories, *rows))
    assert found.exit_code == 0, found.output
    assert "rows.jsonl: 4 rows, instruction" in found.output
    assert "rows: 2 whole, 1 cut, 1 left out" in found.output
    assert "<s>user: Hiassistant: »Hello you</s>«" in found.output
    assert " tokens, learned: »...«\n»A story«" in found.output


def test_every_row_that_cannot_be_used_has_its_line(tmp_path: Path, stories: Path) -> None:
    rows = [pair("Hi", "Hello"), "{", pair("Hi", ""), json.dumps({"messages": [{"role": "usr", "content": "x"}]}), "[]"]
    found = checked(*written(tmp_path, stories, *rows))
    assert isinstance(found.exception, DataError) and "4 of 5 rows cannot be used" in str(found.exception)
    for words in (
        "rows.jsonl:2: not JSON",
        "rows.jsonl:3: completion: there is no answer",
        "rows.jsonl:4: messages: message 1: no role 'usr' (did you mean 'user'?)",
        "rows.jsonl:5: not a JSON object",
    ):
        assert words in found.output
    assert "rows: 1 whole, 4 refused" in found.output


def test_labels_are_counted_and_rows_without_text_or_label_named(tmp_path: Path, minilm_folder: Path) -> None:
    rows: list[Any] = [("good day", "a"), ("bad day", "b"), (" ", "a"), ("what", "c")]
    node, *_ = written(tmp_path, minilm_folder, *(json.dumps({"text": text, "label": label}) for text, label in rows))
    found = checked(node, "--task", "text-classification", "--labels", "a,b", "--json")
    said = json.loads(found.output)
    assert said["labels"] == {"a": 1, "b": 1} and said["fates"] == {"whole": 2} and said["tokens"]["1.0"] == 4
    empty, strange = said["wrong"]
    assert "rows.jsonl:3: text: the text is empty" in empty
    assert "rows.jsonl:4: label 'c' is not in task.labels" in strange
    short = checked(node, "--task", "text-classification", "--labels", "a,b,c", "--max-length", "3")
    assert "labels: a 1, b 1, c 1" in short.output and "2 cut" in short.output and "1 of 4 rows" in str(short.exception)


def test_an_answer_that_nothing_ends_is_named(tmp_path: Path, stories: Path) -> None:
    arguments = written(tmp_path, stories, pair("Hi", "Hello"))
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}")
    found = checked(*arguments)
    assert found.exit_code == 0 and "rows.jsonl:1: no special token ends the answer" in found.output


def test_what_is_to_be_learned_is_said_once(tmp_path: Path, stories: Path) -> None:
    node, *job = written(tmp_path, stories, pair("Hi", "Hello"))
    for arguments in ([], [*job, "--task", "instruction"]):
        found = checked(node, *arguments)
        assert isinstance(found.exception, ConfigError) and "--job" in str(found.exception)
