# SPDX-License-Identifier: Apache-2.0
"""A text with nothing in it, and a tokenizer that adds nothing of its own: a model would learn what padding says. The
worker, `fedkrso data check`, `fedkrso doctor` and `--check` refuse it in the same words, with its lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_client.worker.architecture.configuration import read_tokenizer
from edge_client.worker.data.checking import check_data
from edge_client.worker.data.reading import load_examples
from edge_client.worker.data.tasks import encode
from edge_client.worker.programs.look import seen
from fedcore.config.sections import DataSection, TaskSection
from fedcore.errors import DataError
from fedcore.worker.looking import Look

TASKS = {
    "text-classification": TaskSection(kind="text-classification", labels=("positive", "negative")),
    "regression": TaskSection(kind="regression"),
    "causal-lm": TaskSection(kind="causal-lm"),
}
WORDS = ("that", "jar", "is", "brave", "lamp", "noisy")
LEFT_OUT = "\u200b"
"""No blank to Python, and nothing to this tokenizer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with nothing but a tokenizer: words, and no special token beside a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(("[PAD]", "[UNK]", *WORDS))}, "[UNK]"))
    made.normalizer = normalizers.Replace(LEFT_OUT, "")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    return path


def rows_of(tmp_path: Path, kind: str, texts: list[str]) -> DataSection:
    path = tmp_path / "rows.csv"
    label = {"text-classification": "positive", "regression": "1.5", "causal-lm": ""}[kind]
    header, ending = ("text", "") if kind == "causal-lm" else ("text,label", f",{label}")
    path.write_text("\n".join([header, *(f'"{text}"{ending}' for text in texts)]) + "\n", encoding="utf-8")
    return DataSection(source=str(path))


def refusals(section: DataSection, task: TaskSection, folder: Path) -> dict[str, str]:
    """What each of those who read rows says."""
    tokenizer: Any = read_tokenizer(folder)

    def checked() -> None:
        wrong = check_data(section, task, tokenizer).wrong
        assert len(wrong) == 3
        raise wrong[0]

    asked: dict[str, Callable[[], object]] = {
        "worker": lambda: encode(load_examples(section, task), task, tokenizer),
        "data check": checked,
        "job --check": lambda: list(seen(Look(rows={"evaluation": section}, task=task, model_folder=str(folder)))),
        "job --check without a tokenizer": lambda: list(seen(Look(rows={"evaluation": section}, task=task))),
        "doctor": lambda: list(seen(Look(rows={"data": section}))),
    }
    said = {}
    for who, ask in asked.items():
        with pytest.raises(DataError) as refused:
            ask()
        said[who] = refused.value.one_line()
    return said


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("blank", ["", "  ", "\u3000"], ids=["empty", "blanks", "a wide blank"])
def test_an_empty_text_is_refused_with_its_lines_by_all_who_read(
    tmp_path: Path, kind: str, blank: str, folder: Path
) -> None:
    section = rows_of(tmp_path, kind, ["that jar is brave", blank, "lamp is noisy", blank, blank])
    said = refusals(section, TASKS[kind], folder)
    assert said.pop("data check").endswith("rows.csv:3: text: the text is empty (leave the row out)")
    assert len(set(said.values())) == 1, said
    assert said["worker"].endswith(
        "rows.csv:3: text: the text is empty, and 2 more rows are wrong: 5-6 (leave the row out)"
    )


@pytest.mark.parametrize("kind", ["text-classification", "regression"])
def test_a_text_that_the_tokenizer_leaves_nothing_of_is_refused_with_its_lines_where_there_is_one(
    tmp_path: Path, kind: str, folder: Path
) -> None:
    section = rows_of(tmp_path, kind, ["that jar is brave", LEFT_OUT, "lamp is noisy", LEFT_OUT, LEFT_OUT])
    tokenizer, task = read_tokenizer(folder), TASKS[kind]
    words = "rows.csv:3: the tokenizer leaves no token of it, and 2 more rows are wrong: 5-6 (leave the row out)"
    with pytest.raises(DataError) as by_worker:
        encode(load_examples(section, task), task, tokenizer)
    with pytest.raises(DataError) as by_check:
        list(seen(Look(rows={"evaluation": section}, task=task, model_folder=str(folder))))
    assert by_worker.value.one_line() == by_check.value.one_line() and by_worker.value.one_line().endswith(words)
    assert [error.one_line().partition("rows.csv:")[2] for error in check_data(section, task, tokenizer).wrong] == [
        f"{line}: the tokenizer leaves no token of it (leave the row out)" for line in (3, 5, 6)
    ]


def test_a_language_model_leaves_out_and_counts_what_has_no_token_to_foresee(tmp_path: Path, folder: Path) -> None:
    """As it does texts of a single token."""
    section = rows_of(tmp_path, "causal-lm", ["that jar is brave", LEFT_OUT, "lamp"])
    tokenizer, task = read_tokenizer(folder), TASKS["causal-lm"]
    assert [len(one.ids) for one in encode(load_examples(section, task), task, tokenizer)] == [4]
    assert check_data(section, task, tokenizer).fates == {"whole": 1, "left out": 2}
    (line,) = seen(Look(rows={"evaluation": section}, task=task, model_folder=str(folder)))
    assert line.endswith("3 rows can be used, 2 are left out")
