# SPDX-License-Identifier: Apache-2.0
"""Writes the recipe by which a model answers without torch (`edge_client.worker.compiled.recipe`): which tensors of the
checkpoint its parts are, as transformers' own model of the folder has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from transformers import PreTrainedTokenizerFast

from edge_client.worker.architecture.names import Stored
from edge_client.worker.compiled.kernel import floats
from edge_client.worker.compiled.native import LINEAR, Parts, PartsNorm, Rows
from edge_client.worker.compiled.recipe import BlockRecipe, LinearRecipe, NormRecipe, Recipe
from edge_client.worker.compiled.tokenizer import LightTokenizer, TokenizerRecipe
from edge_client.worker.model.describing import opened
from fedcore.config.sections import TaskSection
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import ModelSchema

__all__ = ["recipe_of", "same_parts", "tokenizer_recipe"]

_CAUSAL: Final = TaskSection(kind="causal-lm")
_PLACES: Final = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "before_attention": "input_layernorm",
    "before_mlp": "post_attention_layernorm",
}
_BESIDE: Final = (".SCB", ".weight_format", ".inv_freq")
"""Tensors of a checkpoint that are no parts of their own."""
_OWN: Final = ("__call__", "_encode_plus", "decode", "_decode", "apply_chat_template", "get_chat_template")
_PROBES: Final = ("Hello, world!", " two  spaces\n\tand a line", "äöü 漢字 🙂", "a", "<s>[INST] 12345 </s>")


def recipe_of(
    checkpoint: Checkpoint,
    parts: Parts,
    tokenizer: Any,
    schema: ModelSchema,
    positions: int,
    end_tokens: tuple[int, ...],
) -> Recipe | None:
    """A model's recipe; None where there is more to it than the names of its tensors, or to its tokenizer than data.

    Args:
        checkpoint: The model folder's tensors.
        parts: Those that the compiled pass has of the model, which gave what transformers gives.
        tokenizer: The folder's, of transformers.
        schema: Which layers of the folder's model are held in 8 bits.
        positions: Tokens that the model can see.
        end_tokens: Tokens that end an answer.
    """
    model, names = opened(checkpoint, _CAUSAL)
    words = tokenizer_recipe(tokenizer)
    if words is None:
        return None
    naming = _Naming(model, names)
    backbone = str(model.base_model_prefix)
    try:
        blocks = tuple(
            _block(naming, f"{backbone}.layers.{number}", parts, number) for number in range(len(parts.blocks))
        )
        found = Recipe(
            table=naming.tensor(f"{backbone}.embed_tokens.weight"),
            blocks=blocks,
            norm=NormRecipe(naming.tensor(f"{backbone}.norm.weight"), parts.norm.epsilon),
            head=naming.linear(naming.head, biased=parts.head.bias is not None),
            frequencies=tuple(map(float, parts.frequencies)),
            angle_scale=parts.angle_scale,
            heads=parts.heads,
            key_heads=parts.key_heads,
            features=parts.features,
            scaling=parts.scaling,
            positions=positions,
            end_tokens=end_tokens,
            schema=schema,
            tokenizer=words,
        )
    except KeyError:
        # A tensor that is made of several, or that the checkpoint does not have.
        return None
    left = {name for name in checkpoint.tensors if not name.endswith(_BESIDE)} - naming.used
    return None if left else found


class _Naming:
    """A model's parameters by the checkpoint's names.

    Args:
        model: Of transformers, without weights.
        names: Where its parameters' numbers lie.
    """

    def __init__(self, model: Any, names: Mapping[str, Stored | None]) -> None:
        self._names = names
        self.used: set[str] = set()
        """The checkpoint's tensors that were asked for."""
        head = model.get_output_embeddings()
        self.head = next(place for place, module in model.named_modules() if module is head)

    def tensor(self, parameter: str) -> str:
        """The one tensor that a parameter's numbers are.

        Raises:
            KeyError: It is not one.
        """
        stored = self._names[parameter]
        if stored is None or not stored.single or stored.conversion:
            raise KeyError(parameter)
        self.used.add(stored.name)
        return stored.name

    def linear(self, place: str, *, biased: bool) -> LinearRecipe:
        """A linear layer's tensors."""
        return LinearRecipe(self.tensor(f"{place}.weight"), self.tensor(f"{place}.bias") if biased else "")


def _block(naming: _Naming, place: str, parts: Parts, number: int) -> BlockRecipe:
    made: dict[str, Any] = {}
    for name, inside in _PLACES.items():
        part = getattr(parts.blocks[number], name)
        if name in LINEAR:
            made[name] = naming.linear(f"{place}.{inside}", biased=part.bias is not None)
        elif part is None:
            made[name] = None
        else:
            made[name] = NormRecipe(naming.tensor(f"{place}.{inside}.weight"), part.epsilon)
    return BlockRecipe(**made)


def tokenizer_recipe(tokenizer: Any) -> TokenizerRecipe | None:
    """A tokenizer as data; None where its class does more than serialise, or the data does not do the same."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or getattr(tokenizer, "split_special_tokens", False):
        return None
    if any(getattr(type(tokenizer), name) is not getattr(PreTrainedTokenizerFast, name) for name in _OWN):
        return None
    found = TokenizerRecipe(
        serialised=tokenizer.backend_tokenizer.to_str(),
        template=tokenizer.get_chat_template() if tokenizer.chat_template else "",
        named=dict(tokenizer.special_tokens_map),
        specials=tuple(tokenizer.all_special_tokens),
        begins=tokenizer.bos_token_id,
        ends=tokenizer.eos_token_id,
    )
    own = LightTokenizer(found)
    for text in (*_PROBES, "".join(found.specials)):
        for added in (True, False):
            ids = own(text, add_special_tokens=added)["input_ids"]
            if ids != tokenizer(text, add_special_tokens=added)["input_ids"]:
                return None
            said = (
                one.decode(ids, skip_special_tokens=added, clean_up_tokenization_spaces=False)
                for one in (own, tokenizer)
            )
            if len(set(said)) > 1:
                return None
    return found


def same_parts(one: Parts, other: Parts) -> bool:
    """Whether two models' parts are the same numbers, as far as the first and last row of each matrix tell: whole, they
    would come from the disk."""
    numbers = ("angle_scale", "heads", "key_heads", "features", "scaling")
    if any(getattr(one, name) != getattr(other, name) for name in numbers) or len(one.blocks) != len(other.blocks):
        return False
    pairs = [(one.norm, other.norm), (one.head, other.head), (Rows(one.table), Rows(other.table))]
    for mine, yours in zip(one.blocks, other.blocks, strict=True):
        pairs += [(getattr(mine, name), getattr(yours, name)) for name in _PLACES]
    return bool(np.array_equal(one.frequencies, other.frequencies)) and all(_alike(*pair) for pair in pairs)


def _alike(one: Any, other: Any) -> bool:
    if one is None or other is None or type(one) is not type(other):
        return one is other
    if isinstance(one, Rows):
        scales = (one.scale, other.scale)
        ends = (floats(rows.weight[[0, -1]]) for rows in (one, other))
        return one.weight.shape == other.weight.shape and _equal(*ends) and _equal(*scales)
    if isinstance(one, PartsNorm):
        return one.epsilon == other.epsilon and _equal(one.weight, other.weight)
    sides = zip(one.side or (None, None), other.side or (None, None), strict=True)
    return _alike(one.weight, other.weight) and _equal(one.bias, other.bias) and all(_alike(*side) for side in sides)


def _equal(one: Any, other: Any) -> bool:
    return one is other or (one is not None and other is not None and bool(np.array_equal(one, other)))
