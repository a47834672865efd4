# SPDX-License-Identifier: Apache-2.0
"""Every architecture trains as transformers has it, or is refused by name: the page's table, row by row."""

from __future__ import annotations

import pytest
import torch
import transformers
from table import CAUSAL_LMS, CLASSIFIERS, PAGE, row

_ROWS = [("causal-lm", one) for one in CAUSAL_LMS] + [("text-classification", one) for one in CLASSIFIERS]
_MADE_WITH = "5.23"
# Those that people have most, and one of each way of writing a layer; `make test-all` asks for every row.
_QUICK = frozenset(
    [
        "bart",
        "bert",
        "bloom",
        "deberta-v2",
        "distilbert",
        "electra",
        "falcon",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "llama",
        "mamba",
        "mistral",
        "mixtral",
        "modernbert",
        "mpt",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "roberta",
        "smollm3",
        "t5",
        "xlm-roberta",
    ]
)


@pytest.fixture(autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        pytest.param(kind, name, id=f"{kind}-{name}", marks=() if name in _QUICK else pytest.mark.slow)
        for kind, name in _ROWS
    ],
)
def test_what_the_page_says_of_an_architecture_is_so(kind: str, model_type: str) -> None:
    if not transformers.__version__.startswith(_MADE_WITH):
        pytest.skip(f"the page was made with transformers {_MADE_WITH}")
    assert row(kind, model_type) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_table_has_at_least_forty_that_train() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("| trains, ") >= 40 and text.count("| refused: ") >= 10
