# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of the kinds that GGUF files are written for, and GGUF files that differ from one in a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from edge_client.worker.exchange.ggufile import GgufFile

__all__ = ["KINDS", "TEMPLATE", "rewritten", "write_model"]

TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
_SIZE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
_SCALED = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
KINDS: dict[str, Callable[..., Any]] = {
    "llama": lambda **given: hf.LlamaConfig(**_SIZE, **given),
    "llama tied": lambda **given: hf.LlamaConfig(**_SIZE, tie_word_embeddings=True, **given),
    "llama biased": lambda **given: hf.LlamaConfig(**_SIZE, attention_bias=True, rms_norm_eps=1e-5, **given),
    "llama 3.1": lambda **given: hf.LlamaConfig(**_SIZE, head_dim=32, rope_parameters=_SCALED, **given),
    "mistral": lambda **given: hf.MistralConfig(**_SIZE, sliding_window=None, **given),
    "qwen2": lambda **given: hf.Qwen2Config(**_SIZE, tie_word_embeddings=True, **given),
    "qwen3": lambda **given: hf.Qwen3Config(**_SIZE, head_dim=32, **given),
}
"""By name, what makes the configuration."""
_WORDS = (
    "the lamp in the kitchen is on", "turn off the radio at seven", "a timer of 25 minutes", "it is 19 degrees",
    "open the blinds, please", "what's on my list?",
)  # fmt: skip


def write_model(folder: Path, kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random model and a byte-level tokenizer that was learned on a few sentences; the model."""
    tokenizer = _tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(seed)
    # A few rows that no token has, as real models pad their embeddings.
    config = KINDS[kind](vocab_size=len(tokenizer) + 3, **ids)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Such that logits differ, and that no norm or bias is one that could be left out.
            parameter.mul_(4) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) / 5)
            assert name
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin|>", "<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_WORDS, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )


def rewritten(
    source: Path,
    target: Path,
    *,
    kind: str | None = None,
    architecture: str | None = None,
    values: Mapping[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    more: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file again, with matrices stored in another type, and values and tensors set or dropped."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
    from gguf.quants import quantize

    file = GgufFile(source)
    writer = GGUFWriter(target, architecture or file.architecture)
    for key, found in file.metadata.items():
        if key not in (values or {}) and key not in drop and key != "general.architecture":
            inner = None if found.of_entries is None else GGUFValueType(found.of_entries)
            writer.add_key_value(key, found.value, GGUFValueType(found.kind), inner)
    for key, value in (values or {}).items():
        types = {
            bool: GGUFValueType.BOOL,
            str: GGUFValueType.STRING,
            float: GGUFValueType.FLOAT32,
            int: GGUFValueType.UINT32,
        }
        writer.add_key_value(key, value, types[type(value)])
    for name, tensor in file.tensors.items():
        if name in drop:
            continue
        as_stored = kind if kind and len(tensor.shape) == 2 else tensor.type_name
        type_ = GGMLQuantizationType[as_stored]
        whole = np.concatenate(list(file.pieces(name))).reshape(tensor.shape)
        writer.add_tensor(name, quantize(whole, type_), raw_dtype=type_)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
