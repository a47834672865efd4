# SPDX-License-Identifier: Apache-2.0
"""A token to pad with, for models whose configuration names none.

Classifiers of the Llama kind find a text's last token by looking for the first that pads, so the token that pads must
be one that no text has: with Llama 3's list of end-of-text tokens, token 0 was taken, which is a word of its
vocabulary, and texts that ended in it were read one token short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_client.worker.architecture.configuration import read_tokenizer
from fedcore.errors import ModelError

__all__ = ["padding_token"]

_SAMPLES = ("a", "The light is on.", "0")
_NAMES = ("pad", "reserved", "unused")


def padding_token(folder: Path, config: Any) -> int:
    """The first token, of those that could pad, that the folder's tokenizer puts into no text by itself.

    Args:
        folder: With a tokenizer. Without one the end of text pads, as far as the configuration has one.
        config: The model's, which names no padding token.

    Raises:
        ModelError: There is no such token.
    """
    words = int(config.vocab_size)
    ends = _as_list(getattr(config, "eos_token_id", None))
    try:
        tokenizer = read_tokenizer(folder)
    except ModelError:
        return next((end for end in ends if 0 <= end < words), 0)
    in_texts = {token for sample in _SAMPLES for token in tokenizer(sample)["input_ids"]}
    for token in _candidates(tokenizer, ends):
        if 0 <= token < words and token not in in_texts:
            return token
    raise ModelError(
        "neither config.json nor the tokenizer has a token that no text has, to pad with",
        place=str(folder / "config.json"),
        remedy="set pad_token_id there",
    )


def _candidates(tokenizer: Any, ends: list[int]) -> Iterator[int]:
    if tokenizer.pad_token_id is not None:
        yield int(tokenizer.pad_token_id)
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda item: int(item[1]))
    for word in _NAMES:
        yield from (token for text, token in added if word in text.lower())
    yield from ends
    yield from (int(token) for token in tokenizer.all_special_ids)


def _as_list(ids: Any) -> list[int]:
    return [int(one) for one in ids] if isinstance(ids, list | tuple) else [] if ids is None else [int(ids)]
