# SPDX-License-Identifier: Apache-2.0
"""A model folder's numbers fit together, or both are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcore.config.fitting import require_fitting
from fedcore.errors import ModelError


def folder_of(path: Path, *, tokens: int, added: int = 0, words: int, positions: int) -> Path:
    vocabulary = {f"w{i}": i for i in range(tokens)}
    table = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": tokens + i} for i in range(added)]}
    (path / "tokenizer.json").write_text(json.dumps(table))
    (path / "config.json").write_text(json.dumps({"vocab_size": words, "max_position_embeddings": positions}))
    return path


def test_a_token_without_a_row_is_refused_with_both_numbers(tmp_path: Path) -> None:
    require_fitting(folder_of(tmp_path, tokens=10, words=10, positions=64))
    with pytest.raises(ModelError, match="the tokenizer has 11 tokens, the model 10"):
        require_fitting(folder_of(tmp_path, tokens=10, added=1, words=10, positions=64))


def test_texts_beyond_the_positions_are_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tokens=10, words=12, positions=64)
    require_fitting(folder, max_length=64)
    require_fitting(folder, max_length=60, virtual_tokens=4)
    with pytest.raises(ModelError, match="behind 4 virtual ones, and a model of 64 positions"):
        require_fitting(folder, max_length=61, virtual_tokens=4)
    with pytest.raises(ModelError, match="texts of 65 tokens, and a model of 64 positions"):
        require_fitting(folder, max_length=65)


def test_what_is_not_said_is_left_to_others(tmp_path: Path) -> None:
    require_fitting(tmp_path, max_length=10_000)
    (tmp_path / "config.json").write_text("no JSON")
    require_fitting(tmp_path, max_length=10_000)
