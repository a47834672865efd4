# SPDX-License-Identifier: Apache-2.0
"""What of a conversation is learned, whatever its template; and that a model answers after the very tokens that it
learned to answer after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from edge_client.worker.data.chat import prompt_ids, render
from edge_client.worker.data.reading import Example
from fedcore.errors import DataError

MARKED = """{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content | trim }}
{%- if m.role == "assistant" %}{{ eos_token }}{% endif %}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
"""The answer follows its mark in the same token stream, and a token that ends it follows the answer."""
UNMARKED = """{% for m in messages %}{% if m.role == "user" %}[INST] {{ m.content }} [/INST]
{%- else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""
"""No generation prompt, as in the first Llama templates."""
ENDING = """{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% else %}{{ bos_token }}{% endif %}"""
"""A token closes the whole text, behind the one that closes the turn."""
FORGETFUL = """{% for m in messages %}{% if loop.last or m.role == "user" %}<{{ m.role }}>{{ m.content }}
{%- if m.role == "assistant" %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
"""Earlier answers are taken out."""
THINKING = """{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}
{%- if add_generation_prompt %}<assistant><think>{% endif %}"""
"""Generation begins with words that no example has."""

TURNS = (
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "Lily."},
    {"role": "user", "content": "And what do you like?"},
    {"role": "assistant", "content": "\n I like to play. "},
)


def example(*messages: Any) -> Example:
    return Example("", None, None, messages, "rows.jsonl:7")


@pytest.fixture(scope="module")
def tokenizer(shared_folder: Path) -> Any:
    """Llama's kind, which puts a space in front of what begins a text and a token that begins it."""
    return AutoTokenizer.from_pretrained(shared_folder / "models" / "stories260K")


def said(tokenizer: Any, found: Any) -> list[str]:
    return [tokenizer.decode(found.ids[start:stop]) for start, stop in found.learned]


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (MARKED, ["Lily.</s>", "I like to play.</s>"]),
        (UNMARKED, ["Lily.</s>", "\n I like to play. </s>"]),
        (ENDING, ["Lily.</s>", "\n I like to play. </s>"]),
    ],
)
@pytest.mark.parametrize("learn", ["all", "last"])
def test_turns_are_learned_with_the_token_that_ends_them(
    tokenizer: Any, template: str, wanted: list[str], learn: Any
) -> None:
    found = render(example(*TURNS), tokenizer, template, learn)
    texts = [text.strip() for text in said(tokenizer, found)]
    assert texts == [text.strip() for text in (wanted if learn == "all" else wanted[-1:])]
    assert "".join(text for text, _ in found.pieces) == tokenizer.apply_chat_template(
        list(TURNS), chat_template=template, tokenize=False
    ).removesuffix("\n").removesuffix("\n<s>")
    assert [text.strip() for text, learned in found.pieces if learned] == texts


@pytest.mark.parametrize("template", [MARKED, UNMARKED, ENDING, ""])
@pytest.mark.parametrize("answer", ["Lily.", "\n\nLily.", " 12 ", "<0x0A>é"])
def test_a_model_is_asked_with_the_tokens_that_it_learned_after(tokenizer: Any, template: str, answer: str) -> None:
    conversation = (TURNS[0], {"role": "assistant", "content": answer})
    found = render(example(*conversation), tokenizer, template)
    asked = prompt_ids(conversation[:1], tokenizer, template)
    assert found.ids[: len(asked)] == asked and found.learned == ((len(asked), len(found.ids)),)
    if template:
        longer = render(example(*conversation, *TURNS[2:]), tokenizer, template)
        asked = prompt_ids((*conversation, TURNS[2]), tokenizer, template)
        assert longer.ids[: len(asked)] == asked and longer.learned[-1] == (len(asked), len(longer.ids))


def test_tokens_are_those_of_the_whole_text(tokenizer: Any) -> None:
    """Where no token reaches over the seam, pieces make the ids that everybody makes."""
    found = render(example(*TURNS[:2]), tokenizer, MARKED)
    whole = tokenizer.apply_chat_template(list(TURNS[:2]), chat_template=MARKED, tokenize=True, return_dict=False)
    assert list(found.ids) == whole[: len(found.ids)]


def test_a_template_that_takes_earlier_answers_out_serves_for_the_last(tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: .* no turn that can be told .* \(set task\.learn to \"last\"\)"
    ):
        render(example(*TURNS), tokenizer, FORGETFUL, "all")
    found = render(example(*TURNS), tokenizer, FORGETFUL, "last")
    asked = prompt_ids(TURNS[:3], tokenizer, FORGETFUL)
    assert found.ids[: len(asked)] == asked and found.learned == ((len(asked), len(found.ids)),)
    assert "Lily" not in tokenizer.decode(found.ids)


def test_a_generation_prompt_that_no_example_has_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"'.*<think>' while the turn is said, is .*task\.template"):
        render(example(*TURNS[:2]), tokenizer, THINKING, "last")


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% for m in messages %}\n{{ m.content.nothing() }}{% endfor %}", "fails in its line 2: 'str object' has no"),
        (
            "{{ raise_exception('only one turn') }}",
            r"rows\.jsonl:7: the chat template fails in its line 1: only one turn",
        ),
        ("\n\n{% if %}", "fails in its line 3: "),
    ],
)
def test_a_template_that_fails_is_named_with_its_line(tokenizer: Any, template: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        render(example(*TURNS), tokenizer, template)


def test_without_a_template_texts_begin_and_end_once(tokenizer: Any) -> None:
    pair = render(example(*TURNS[:2]), tokenizer)
    assert tokenizer.decode(pair.ids) == "<s> Who are you?Lily.</s>" and said(tokenizer, pair) == ["Lily.</s>"]
    for text in ("Once upon a time", "<s>Once upon a time</s>"):
        found = render(Example(text, None, None), tokenizer)
        assert [found.ids.count(token) for token in (1, 2)] == [1, 1] and found.learned == ((1, len(found.ids)),)
        assert found.ids[0] == 1 and found.ids[-1] == 2
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        render(example(*TURNS), tokenizer)
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        prompt_ids(TURNS[:3], tokenizer)
