# SPDX-License-Identifier: Apache-2.0
"""Rows that are conversations, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_client.worker.data.reading import check_row, load_examples, load_texts
from fedcore.config.data import data_section
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import ConfigError, DataError

TASK = TaskSection(kind="instruction")
ASKED = {"role": "user", "content": "2+2?"}
SAID = {"role": "assistant", "content": "4"}


def jsonl(tmp_path: Path, *rows: Any) -> DataSection:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSection(source=str(path))


def test_messages_columns_and_text_are_read_as_what_they_are(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "+2?"}]
    section = jsonl(
        tmp_path,
        {"messages": [ASKED, SAID], "text": "not this"},
        {"messages": [{"role": "user", "content": parts}, SAID]},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [ASKED], "completion": [SAID], "messages": None},
        {"messages": json.dumps([ASKED, SAID])},
        {"text": "plain"},
    )
    *conversations, plain = load_examples(section, TASK)
    assert [example.messages for example in conversations] == 5 * [(ASKED, SAID)]
    assert (plain.text, plain.messages, plain.place) == ("plain", (), f"{section.source}:6")
    assert load_texts(section, 2, TASK) == [conversations[0], conversations[3]]
    for row in ({"messages": [ASKED, SAID]}, {"prompt": "a", "completion": "b"}):
        check_row(row, "row 1", DataSection(source=""))


def test_columns_have_the_names_that_the_section_gives(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("question,answer\n2+2?,4\n")
    section = DataSection(source=str(table), prompt="question", completion="answer")
    assert load_examples(section, TASK)[0].messages == (ASKED, SAID)
    with pytest.raises(DataError, match=r"did you mean 'completions' for 'completion'\? columns: prompt, completions"):
        load_examples(jsonl(tmp_path, {"prompt": "2+2?", "completions": "4"}), TASK)


def test_a_programs_rows_keep_their_messages(tmp_path: Path) -> None:
    rows = ({"messages": [ASKED, SAID]} for _ in range(2))
    section = data_section(rows, None, tmp_path / "kept.jsonl")
    assert [example.messages for example in load_examples(section, TASK)] == 2 * [(ASKED, SAID)]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"messages": []}, r"rows\.jsonl:1: messages: there are no messages"),
        ({"messages": "nonsense"}, "messages: not JSON"),
        ({"messages": 3}, "int is no list of messages"),
        ({"messages": ["hello"]}, r"message 1: str is no message \(write \{"),
        ({"messages": [ASKED]}, "there is no answer: the last message is the user's"),
        ({"messages": [{**ASKED, "role": "usr"}, SAID]}, r"message 1: no role 'usr' \(did you mean 'user'\?"),
        ({"messages": [{"content": "hello"}, SAID]}, "there is no role"),
        ({"messages": [ASKED, SAID, SAID]}, "message 3: the assistant speaks twice in a row"),
        ({"messages": [ASKED, {**SAID, "content": " "}]}, "message 2: what the assistant says is empty"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "message 2: there is no content"),
        ({"messages": [ASKED, {**SAID, "content": [{"type": "image"}]}]}, "a part of its content is no text"),
        ({"messages": [ASKED, {**SAID, "content": 4}]}, "its content is int, not text"),
        ({"prompt": "2+2?", "completion": ""}, r"rows\.jsonl:1: completion: there is no answer"),
        ({"prompt": "2+2?", "completion": None}, "completion: there is no answer"),
        ({"text": " "}, "the text is empty"),
        ({"text": 3}, "column 'text' holds int, not text"),
        ({"question": "2+2?"}, "no column 'messages', no pair 'prompt' and 'completion', no 'text'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_its_place(tmp_path: Path, row: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_examples(jsonl(tmp_path, row), TASK)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"kind": "causal-lm", "learn": "last"}, "task.learn: causal-lm has no conversations"),
        ({"kind": "instruction", "template": "a", "template_text": "b"}, "task.template: there are two templates"),
        ({"kind": "instruction", "min_length": 8}, "task.too_long: a device may cut examples to min_length"),
    ],
)
def test_keys_that_mean_nothing_are_refused(words: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TaskSection(**words)
