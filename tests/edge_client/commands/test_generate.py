# SPDX-License-Identifier: Apache-2.0
"""`fedkrso generate` and `fedkrso chat`: real workers, a tiny random model, what a person sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from edge_client.commands.generate import chat, generate
from edge_client.worker.answering.finished import finished
from edge_client.worker.answering.written import written
from edge_client.worker.data.chat import prompt_ids
from edge_client.worker.generate.generator import Generator
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, DataError
from tests.edge_client.serving.tiny_chat import CONTEXT, write_tiny_chat
from tests.patience import a_group


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("asked") / "tiny")


def asked(command: object, tiny: Path, *arguments: str, text: str = "") -> str:
    words = ["--model", str(tiny), "--memory-budget", "4 GiB", "--max-new-tokens", "12", *arguments]
    return CliRunner().invoke(command, words, input=text, catch_exceptions=False).stdout  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick_workers")
def test_an_argument_and_the_standard_input_are_answered_alike(tiny: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    generator = Generator(finished(tiny, tmp_path, tokenizer).model, tokenizer)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    answer = generator.stream(prompt_ids(messages, tokenizer), GenerationOptions(max_new_tokens=12))
    expected = "".join(token.text for token in answer) + "\n"
    assert asked(generate, tiny, "hello", "--system", "be brief") == expected
    assert asked(generate, tiny, "--system", "be brief", text="hello") == expected


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["x"], ConfigError, "one of --model FOLDER and --node"),
        (["x", "--model", "TINY", "--temperature", "-1"], ConfigError, "--temperature"),
        (["  ", "--model", "TINY"], ConfigError, "an empty prompt"),
        (["x" * CONTEXT, "--model", "TINY"], DataError, "the context holds 512"),
        (["x", "--model", "TINY", "--memory-budget", "90 MiB"], Exception, "memory"),
    ],
)
def test_what_cannot_be_answered_is_refused(tiny: Path, arguments: list[str], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        generate.main([str(tiny) if word == "TINY" else word for word in arguments], standalone_mode=False)


@pytest.mark.usefixtures("quick_workers")
def test_a_conversation_goes_on_until_it_is_too_long_or_reset(tiny: Path) -> None:
    first, again = asked(chat, tiny, text="one\n/reset\none\n/exit\nnever\n").splitlines()
    assert first == again
    long = "y" * (CONTEXT - 60)
    lines = asked(chat, tiny, text=f"one\ntwo\n{long}\ntwo\n").splitlines()
    # What was refused has left no trace: the same words are asked after the same conversation and one more answer.
    assert lines[0] == first and len(lines) == 3


SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "area": {"enum": ["bath", "attic"]}},
    "required": ["area", "on"],
    "additionalProperties": False,
}


def test_answers_meet_a_schema_and_keep_its_order(tiny: Path, tmp_path: Path) -> None:
    form = tmp_path / "form.json"
    form.write_text(json.dumps(SCHEMA))
    said = asked(chat, tiny, "--schema", str(form), "--max-new-tokens", "60", text="one\ntwo\n")
    # Space between the parts is the model's own affair.
    answers = [json.loads(one + "}") for one in said.split("}") if one.strip()]
    assert len(answers) == 2 and all(list(answer) == ["on", "area"] for answer in answers)


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read as JSON"), ("[]", "a schema is a JSON object")])
@pytest.mark.parametrize("command", [generate, chat])
def test_a_schema_that_is_none_is_refused_before_anything_is_loaded(
    tiny: Path, tmp_path: Path, command: click.Command, text: str, words: str
) -> None:
    form = tmp_path / "form.json"
    form.write_text(text)
    with pytest.raises(ConfigError, match=f"{words}"):
        command.main(["--model", str(tiny), "--schema", str(form)], standalone_mode=False)


def test_ctrl_c_ends_the_answer_and_not_the_conversation(tiny: Path) -> None:
    command = [sys.executable, "-m", "fedkrso", "chat", "--model", str(tiny), "--temperature", "1"]
    with a_group(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        # As a terminal does: every process of the group, the worker too.
        os.killpg(process.pid, signal.SIGINT)
        process.stdout.readline()
        process.stdin.write("two\n")
        process.stdin.close()
        assert process.stdout.read()
    assert process.returncode == 0


def test_a_finished_model_writes_to_texts(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    said = written(tiny, TaskSection(kind="instruction"), ["hello", "you"], tokenizer)
    continued = written(tiny, TaskSection(kind="causal-lm"), ["hello"], tokenizer)
    assert len(said) == 2 and all(said) and said[0] != continued[0]
