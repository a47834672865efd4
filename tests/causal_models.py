# SPDX-License-Identifier: Apache-2.0
"""Small random causal models of several shapes, and a tokenizer of bytes for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["SHAPES", "byte_tokenizer", "random_model"]

_SIZE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_GROUPED = {**_SIZE, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}
_ENDS = {"eos_token_id": 299, "bos_token_id": 298, "pad_token_id": 297}

SHAPES: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED, **_ENDS),
    "llama tied": lambda: hf.LlamaConfig(**_GROUPED, **_ENDS, tie_word_embeddings=True, attention_bias=True),
    "mistral window": lambda: hf.MistralConfig(**_GROUPED, **_ENDS, sliding_window=9),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED, **_ENDS),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, **_ENDS, head_dim=16),
    "gemma": lambda: hf.GemmaConfig(**_GROUPED, **_ENDS, head_dim=8),
    "granite": lambda: hf.GraniteConfig(**_GROUPED, **_ENDS, residual_multiplier=0.5, logits_scaling=2.0),
    "gpt2": lambda: hf.GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=128, **_ENDS),
    "neox": lambda: hf.GPTNeoXConfig(**_SIZE, intermediate_size=48, max_position_embeddings=128, **_ENDS),
}
"""By name, what makes the configuration; those of the Llama kind first."""


def random_model(shape: str, seed: int = 0) -> Any:
    """A float32 model whose logits differ enough for the likeliest token to be clear."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def byte_tokenizer() -> Any:
    """256 tokens for the bytes, and three that end, begin and pad a text (299, 298, 297)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(alphabet)}
    vocabulary |= {f"<unused{number}>": number for number in range(256, 297)}
    vocabulary |= {"<pad>": 297, "<begin>": 298, "<end>": 299}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<begin>", pad_token="<pad>"
    )
