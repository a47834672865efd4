# SPDX-License-Identifier: Apache-2.0
"""Chat templates are rendered as transformers renders them, letter by letter, and reach no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError

from edge_client.worker.compiled.templates import rendered
from edge_client.worker.compiled.tokenizer import LightTokenizer
from edge_client.worker.generate.recording import tokenizer_recipe
from tests.causal_models import byte_tokenizer

TURNS = [
    {"role": "system", "content": "Sei kurz: <b>äöü</b> & 漢字."},
    {"role": "user", "content": ' "Hello"\n  there '},
    {"role": "assistant", "content": "Hi \\ you."},
    {"role": "user", "content": "again"},
]
TEMPLATES = {
    "turns": "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "blocks": """
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content }}
        {%- set rest = messages[1:] %}
    {%- else %}
        {%- set rest = messages %}
    {%- endif %}
    {% for m in rest %}
        {% if loop.index0 % 2 %}
  even {{ loop.last }}
        {% endif %}
{{ bos_token if loop.first }}{{ m.content }}
    {% endfor %}
    """,
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.last = m.role %}{% endfor %}{{ ns.n }}{{ ns.last }}",
    "json": "{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}"
    "{{ dict(b=1, a='é') | tojson(sort_keys=true, separators=(',', ':')) }}",
    "loops": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index > 3 %}{% break %}"
    "{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\n"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "macro": "{% macro say(m, sign='>') %}{{ m.role[0:1] | upper }}{{ sign }}{{ m.content | length }};{% endmacro %}"
    "{% for m in messages | reverse %}{{ say(m) }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}",
    "absent": "{{ tools is none }}{{ tools is defined }}{{ documents is defined }}{{ nothing is defined }}{{ unk_token }}"
    "{{ messages[0].name is defined }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "date": "{{ strftime_now('%Y') | length }}",
}
REFUSED = {
    "raised": "{{ raise_exception('only one turn') }}",
    "sandbox": "{{ messages.__class__.__mro__ }}",
    "changed": "{{ messages.append(1) }}",
    "hidden": "{% set ns = namespace(_x=1) %}{{ ns }}",
    "hidden later": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "syntax": "{% for m in messages %}",
}


def both(template: str, turns: Any = TURNS) -> tuple[LightTokenizer, Any]:
    heavy = byte_tokenizer()
    heavy.chat_template = template
    recipe = tokenizer_recipe(heavy)
    assert recipe is not None
    return LightTokenizer(recipe), heavy


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_transformers_own(name: str, asks: bool) -> None:
    light, heavy = both(TEMPLATES[name])
    expected = heavy.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=asks)
    assert light.apply_chat_template(TURNS, add_generation_prompt=asks) == expected != ""


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_refuses_is_refused(name: str) -> None:
    light, heavy = both(REFUSED[name])
    for tokenizer in (light, heavy):
        with pytest.raises(TemplateError):
            tokenizer.apply_chat_template(TURNS, tokenize=False)


@pytest.mark.slow
def test_smollm2_s_own_template(smollm_folder: Path) -> None:
    from transformers import AutoTokenizer

    heavy = AutoTokenizer.from_pretrained(smollm_folder)
    recipe = tokenizer_recipe(heavy)
    assert recipe is not None and recipe.template
    light = LightTokenizer(recipe)
    for turns in (TURNS, TURNS[1:]):
        expected = heavy.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert light.apply_chat_template(turns, add_generation_prompt=True) == expected
        assert light(expected, add_special_tokens=False)["input_ids"] == heavy(expected)["input_ids"]


def test_values_that_are_none_are_not_there() -> None:
    template = "{{ messages[0].name is defined }}{{ messages[0].content }}"
    assert rendered(template, [{"content": "x", "name": None}], {}, asks=False) == "Falsex"
