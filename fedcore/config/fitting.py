# SPDX-License-Identifier: Apache-2.0
"""Whether a model folder's numbers fit together, as far as its JSON files tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fedcore.errors import ModelError

__all__ = ["require_fitting"]


class _Added(msgspec.Struct):
    id: int


class _Vocabulary(msgspec.Struct):
    vocab: dict[str, int] | list[Any] = msgspec.field(default_factory=dict)


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_Added] = msgspec.field(default_factory=list)
    model: _Vocabulary = msgspec.field(default_factory=_Vocabulary)


class _Config(msgspec.Struct):
    vocab_size: int = 0
    max_position_embeddings: int = 0
    n_positions: int = 0


def require_fitting(folder: Path, *, max_length: int = 0, virtual_tokens: int = 0) -> None:
    """Check that the model has a row for each token of its tokenizer, and positions for a text of the longest length.

    Files that are not there, or say nothing of it, are left to whoever reads them whole.

    Args:
        folder: The model folder.
        max_length: Tokens of the longest text; 0 to leave it out.
        virtual_tokens: Of an adapter, before each text.

    Raises:
        ModelError: Both numbers.
    """
    config = _decoded(folder / "config.json", _Config) or _Config()
    tokenizer = _decoded(folder / "tokenizer.json", _Tokenizer) or _Tokenizer()
    vocabulary = tokenizer.model.vocab
    known = list(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))
    tokens = max((*known, *(one.id for one in tokenizer.added_tokens)), default=-1) + 1
    if 0 < config.vocab_size < tokens:
        raise ModelError(
            f"the tokenizer has {tokens:,} tokens, the model {config.vocab_size:,}",
            place=str(folder),
            remedy="resize the model's embeddings (resize_token_embeddings) and save it again",
        )
    positions = config.max_position_embeddings or config.n_positions
    if 0 < positions < max_length + virtual_tokens:
        virtual = f" behind {virtual_tokens:,} virtual ones" if virtual_tokens else ""
        raise ModelError(
            f"texts of {max_length:,} tokens{virtual}, and a model of {positions:,} positions",
            place=str(folder / "config.json"),
            remedy=f"set task.max_length to {positions - virtual_tokens:,} or less",
        )


def _decoded(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
