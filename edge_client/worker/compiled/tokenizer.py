# SPDX-License-Identifier: Apache-2.0
"""A tokenizer without transformers: the same compiled code below (`tokenizers`), made from what transformers' own one
was, with the few of its methods that answering calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edge_client.worker.compiled.templates import rendered

__all__ = ["LightTokenizer", "TokenizerRecipe"]


class TokenizerRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that a tokenizer does, as data."""

    serialised: str
    """The JSON of `tokenizers`."""
    template: str = ""
    """The chat template; empty: none."""
    named: dict[str, str] = {}
    """Special tokens by name: `bos_token`, `eos_token`."""
    specials: tuple[str, ...] = ()
    """All special tokens."""
    begins: int | None = None
    ends: int | None = None


class LightTokenizer:
    """What answering calls of a tokenizer of transformers, under the same names.

    Args:
        recipe: What it does.
    """

    def __init__(self, recipe: TokenizerRecipe) -> None:
        self.backend_tokenizer = Tokenizer.from_str(recipe.serialised)
        # As transformers has it for one text.
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        self._named = recipe.named
        self.chat_template = recipe.template or None
        self.bos_token_id, self.eos_token_id = recipe.begins, recipe.ends
        self.all_special_tokens = list(recipe.specials)

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Tokens that were added to the model's own, by number."""
        found: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Token ids of a text."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """The text of token ids; spaces are never cleaned up."""
        assert not clean_up_tokenization_spaces
        text: str = self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """A conversation's text, by the given template or the tokenizer's."""
        assert not tokenize
        return rendered(
            chat_template or self.chat_template or "", conversation, self._named, asks=add_generation_prompt
        )
