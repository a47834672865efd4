# SPDX-License-Identifier: Apache-2.0
"""Virtual tokens on a built model: before each text (prompts), or before the keys and values of each layer (prefixes).

PEFT wraps a model in another one for it. Here the backbone itself is given what PEFT would give it, so that whoever
calls it, a head on one of its states or a loss that never makes logits whole, sees a text's own tokens and no others.

Legend: b texts of a micro-batch, t tokens of the longest, v virtual tokens, n features, h heads of keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from edge_client.worker.adapters.packages import peft_package
from edge_client.worker.model.built import BuiltModel
from fedcore.config.adapters import PrefixTuning, VirtualTokens
from fedcore.errors import ModelError

__all__ = ["ATTENTION", "before_keys", "before_texts", "encoder_of", "stand_before"]

ATTENTION = "fedkrso_prefix"
"""What transformers calls `_attention`."""

_ENCODERS = {
    "PROMPT_TUNING": ("PromptTuningConfig", "PromptEmbedding"),
    "PREFIX_TUNING": ("PrefixTuningConfig", "PrefixEncoder"),
    "P_TUNING": ("PromptEncoderConfig", "PromptEncoder"),
}


def encoder_of(adapter: VirtualTokens, config: Any, seed: int = 0) -> Any:
    """PEFT's module that makes the virtual tokens; torch's own generator is left as it was.

    Args:
        adapter: Which.
        config: The model's, of transformers.
        seed: Of the first numbers that PEFT draws, which nobody trains from.

    Raises:
        ModelError: PEFT is not installed, or the model says too little of itself.
    """
    peft, text = peft_package(), config.get_text_config()
    settings, encoder = (getattr(peft, name) for name in _ENCODERS[adapter.peft_type])
    try:
        heads, features = text.num_attention_heads, text.hidden_size
        if isinstance(adapter, PrefixTuning):
            each = getattr(text, "head_dim", None) or features // heads
            heads = getattr(text, "num_key_value_heads", None) or heads
            features = each * heads
        shape = {"token_dim": features, "num_layers": text.num_hidden_layers, "num_attention_heads": heads}
    except AttributeError as error:
        raise ModelError(f"this model has no place for virtual tokens: {error}", place="method.peft") from None
    said = settings(**adapter.settings, **shape, num_transformer_submodules=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return encoder(said) if adapter.peft_type != "PROMPT_TUNING" else encoder(said, None)


def stand_before(model: BuiltModel, adapter: VirtualTokens) -> nn.Module:
    """Have a model compute with virtual tokens; what makes them becomes a part of its backbone.

    Raises:
        ModelError: PEFT is not installed, or the model has no place for them.
    """
    encoder: nn.Module = encoder_of(adapter, model.module.config)
    model.backbone.add_module("virtual_tokens", encoder)
    if isinstance(adapter, PrefixTuning):
        tokens, layers = adapter.num_virtual_tokens, _config_of(model).get_text_config().num_hidden_layers
        before_keys(model, lambda: tokens, partial(_keys_and_values, encoder, (tokens, 2 * layers)), "method.peft")
    else:
        before_texts(model, lambda: _vectors(encoder, adapter.num_virtual_tokens), adapter.num_virtual_tokens)
    return encoder


def _vectors(encoder: nn.Module, tokens: int) -> Tensor:
    """What stands there, (v, ...)."""
    device = next(encoder.parameters()).device
    # The network of P-tuning was made for a micro-batch.
    vectors: Tensor = encoder(torch.arange(tokens, device=device)[None])[0]
    return vectors


def _arguments(backbone: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """By name, however the model was called; refused where virtual tokens have no place."""
    given = kwargs
    if args:
        given = {**inspect.signature(backbone.forward).bind_partial(*args).arguments, **kwargs}
    if given.get("position_ids") is not None or "row_lengths" in given:
        raise ValueError("virtual tokens stand before texts that lie side by side, with padding")
    if given.get("past_key_values") is not None:
        raise ModelError("virtual tokens have no place in an answer's cache", place="method.peft")
    return given


def before_texts(model: BuiltModel, vectors: Callable[[], Tensor], tokens: int) -> None:
    """Have the backbone of a model see vectors before each text; what it says is of the text's own tokens.

    Args:
        model: Built.
        vectors: What stands there now, (v, n).
        tokens: v.
    """
    backbone: Any = model.backbone

    def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = _arguments(backbone, args, kwargs)
        ids, mask, types = (given.pop(name, None) for name in ("input_ids", "attention_mask", "token_type_ids"))
        words = backbone.get_input_embeddings()(ids)  # (b, t, n)
        rows = words.shape[0]
        own = vectors().to(words.dtype).expand(rows, -1, -1)
        given["inputs_embeds"] = torch.cat([own, words], 1)
        if mask is not None:
            given["attention_mask"] = mask = torch.cat([mask.new_ones(rows, tokens), mask], 1)
        if types is not None:
            given["token_type_ids"] = torch.cat([types.new_zeros(rows, tokens), types], 1)
        # What goes through the layers now.
        model.padding.see(torch.ones(rows, tokens + words.shape[1], device=words.device) if mask is None else mask)
        return (), given

    def after(_: nn.Module, __: Any, said: Any) -> Any:
        said.last_hidden_state = said.last_hidden_state[:, tokens:]
        return said

    backbone.register_forward_pre_hook(before, with_kwargs=True)
    backbone.register_forward_hook(after)


def before_keys(
    model: BuiltModel,
    tokens: Callable[[], int],
    keys_and_values: Callable[[int, int], tuple[Tensor, Tensor] | None],
    place: str,
) -> None:
    """Have each layer of a model see vectors before its keys and values.

    Args:
        model: Built.
        tokens: How many there are now: what follows stands so many positions further behind.
        keys_and_values: Of a layer, by its number and how many heads keys have: (h, v, n / h) each; None for none.
        place: What errors name.

    Raises:
        ModelError: The model has no attention that takes them.
    """
    backbone, config = model.backbone, _config_of(model)
    attentions: list[Any] = [one for one in backbone.modules() if getattr(one, "layer_idx", None) is not None]
    attentions = [one for one in attentions if "Attention" in type(one).__name__]
    layers = {one.layer_idx for one in attentions}
    if layers != set(range(config.get_text_config().num_hidden_layers)) or config._attn_implementation != "sdpa":
        raise ModelError(
            f"{type(model.module).__name__} has no attention that takes a prefix",
            place=place,
            remedy='use a prompt before the text: name = "fedavg-peft", peft = { type = "prompt" }',
        )
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    config._attn_implementation = ATTENTION
    for one in attentions:
        one.virtual_tokens = partial(keys_and_values, one.layer_idx)
    embeddings = getattr(backbone, "embeddings", None)
    # RoBERTa and its kin count positions from behind the padding's.
    counts_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
    behind = int(getattr(embeddings, "padding_idx", 0)) + 1 if counts_padding else 0

    def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = _arguments(backbone, args, kwargs)
        ids, first = given["input_ids"], tokens() + behind
        given["position_ids"] = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
        return (), given

    backbone.register_forward_pre_hook(before, with_kwargs=True)


def _config_of(model: BuiltModel) -> Any:
    return model.module.config


def _keys_and_values(encoder: nn.Module, sizes: tuple[int, int], layer: int, heads: int) -> tuple[Tensor, Tensor]:
    """Of a layer, (h, v, n / h) each, where a virtual token is keys and values of all layers, one after the other."""
    all_layers = _vectors(encoder, sizes[0]).view(*sizes, heads, -1)
    return all_layers[:, 2 * layer].transpose(0, 1), all_layers[:, 2 * layer + 1].transpose(0, 1)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention as transformers computes it, to a prefix too, which every token sees."""
    rows, heads, length, _ = key.shape
    there = module.virtual_tokens(heads)
    if there is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return plain
    keys, values = there
    tokens = keys.shape[1]
    causal = kwargs.get("is_causal")
    if mask is not None:
        seen = mask.new_ones(1) if mask.dtype == torch.bool else mask.new_zeros(1)
        mask = torch.cat([seen.expand(*mask.shape[:-1], tokens), mask], -1)
    elif (getattr(module, "is_causal", True) if causal is None else causal) and length > 1:
        mask = torch.ones(length, tokens + length, dtype=torch.bool, device=key.device).tril(tokens)[None, None]
    key = torch.cat([keys.to(key.dtype).expand(rows, -1, -1, -1), key], 2)
    value = torch.cat([values.to(value.dtype).expand(rows, -1, -1, -1), value], 2)
    said: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    return said
