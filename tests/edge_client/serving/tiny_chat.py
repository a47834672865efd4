# SPDX-License-Identifier: Apache-2.0
"""A random model that writes, with a tokenizer of bytes and a chat template: garbage, in whole files that every part of
the way reads."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["CONTEXT", "TEMPLATE", "write_tiny_chat"]

CONTEXT = 512
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_END, _BEGIN, _PAD = 299, 298, 297


def write_tiny_chat(folder: Path, seed: int = 0, width: int = 32) -> Path:
    """Write the folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=_END,
        bos_token_id=_BEGIN,
        pad_token_id=_PAD,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(signs)}
    vocabulary |= {f"<unused{number}>": number for number in range(256, _PAD)}
    vocabulary |= {"<pad>": _PAD, "<begin>": _BEGIN, "<end>": _END}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<begin>", pad_token="<pad>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    return folder
