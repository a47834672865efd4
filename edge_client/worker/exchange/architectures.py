# SPDX-License-Identifier: Apache-2.0
"""Architectures that GGUF files and Hugging Face folders both have, and what each calls the same thing.

Each is held against llama.cpp itself by a test: a file that we write computes there what the folder computes in
transformers. What is not in this table is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ModelError

__all__ = ["ARCHITECTURES", "Architecture", "llama3_factors", "llama3_scaling", "of_config", "paired", "unpaired"]

_COMMON: Final = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_SMOOTHED: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of Llama 3.1 and later: the same in all of them."""


@dataclass(frozen=True)
class Architecture:
    """One of them.

    Attributes:
        name: `general.architecture` of a GGUF file.
        model_type: `model_type` of a config.json.
        keys: Metadata, without the architecture's name, and the config's keys.
        paired_rotary: Whether a file has the rows of queries and keys that turn together side by side, and not half a
            head apart as transformers does.
        scales_rotary: Whether frequencies may be scaled as in Llama 3.1 (`rope_freqs.weight`).
        biases: Config keys that are true where a file has the tensor of block 0.
        fixed: What the config must say; another value has no place in a file.
    """

    name: str
    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: _COMMON)
    paired_rotary: bool = False
    scales_rotary: bool = False
    biases: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: Final = (
    Architecture(
        "llama",
        "llama",
        paired_rotary=True,
        scales_rotary=True,
        biases={"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias"},
        fixed={"hidden_act": "silu"},
    ),
    # Mistral's files say llama, and have no window.
    Architecture("llama", "mistral", paired_rotary=True, fixed={"hidden_act": "silu", "sliding_window": None}),
    Architecture("qwen2", "qwen2", fixed={"hidden_act": "silu", "use_sliding_window": False}),
    Architecture("qwen3", "qwen3", fixed={"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False}),
)
"""A file is read as the first that has its name."""


def of_config(config: Any, place: str) -> Architecture:
    """The architecture of a transformers configuration, if a GGUF file can say all of it.

    Args:
        config: As `AutoConfig` loads it.
        place: Where it is from, for errors.

    Raises:
        ModelError: It cannot; the message says what.
    """
    found = next((one for one in ARCHITECTURES if one.model_type == config.model_type), None)
    if found is None:
        known = ", ".join(one.model_type for one in ARCHITECTURES)
        raise ModelError(
            f"no GGUF file is written for a model of type {config.model_type!r}", place=place, remedy=f"types: {known}"
        )
    for key, value in found.fixed.items():
        if getattr(config, key, value) != value:
            raise ModelError(
                f"{key} is {getattr(config, key)!r}, which a GGUF file of {found.name} cannot say", place=place
            )
    rotary = dict(config.rope_parameters or {})
    kind = rotary.get("rope_type", "default")
    if kind != "default" and not (kind == "llama3" and found.scales_rotary):
        raise ModelError(f"rotary embeddings of kind {kind!r} are not written into GGUF files", place=place)
    if rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("rotary embeddings of a part of a head are not written into GGUF files", place=place)
    return found


def paired(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of queries or keys as a GGUF file of Llama has them, from transformers' order.

    transformers turns row i of a head with row i + d/2, llama.cpp row 2 i with row 2 i + 1.

    Args:
        values: Weight (heads d, n) or bias (heads d,).
        heads: How many.

    Example:
        >>> paired(np.arange(8), 1).tolist()
        [0, 4, 1, 5, 2, 6, 3, 7]
        >>> unpaired(paired(np.arange(16), 2), 2).tolist() == list(range(16))
        True
    """
    half = len(values) // heads // 2
    return np.asarray(values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def unpaired(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """The other way: from a file's order to transformers'."""
    half = len(values) // heads // 2
    return np.asarray(values.reshape(heads, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def llama3_factors(config: Mapping[str, Any], theta: float, head: int) -> NDArray[np.float32]:
    """What Llama 3.1 divides each rotary frequency by, float32 (head / 2,); the tensor `rope_freqs.weight`.

    Args:
        config: `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`.
        theta: Base of the frequencies.
        head: Width of a head.

    Example:
        >>> llama3_factors({"factor": 8.0, **_SMOOTHED}, 500_000.0, 128)[[0, 63]].tolist()
        [1.0, 8.0]
    """
    length = 2 * math.pi * theta ** (np.arange(0, head, 2, dtype=np.float64) / head)
    low, high, factor = config["low_freq_factor"], config["high_freq_factor"], config["factor"]
    original = config["original_max_position_embeddings"]
    smooth = np.clip((original / length - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def llama3_scaling(factors: NDArray[np.float32], theta: float, head: int) -> dict[str, Any] | None:
    """What of a config gives these factors, or None where nothing that is known does.

    Example:
        >>> scaling = llama3_scaling(llama3_factors({"factor": 32.0, **_SMOOTHED}, 500_000.0, 64), 500_000.0, 64)
        >>> scaling["rope_type"], scaling["factor"]
        ('llama3', 32.0)
    """
    found = {"rope_type": "llama3", "factor": float(np.max(factors)), **_SMOOTHED}
    expected = llama3_factors(found, theta, head)
    return found if len(factors) == len(expected) and np.allclose(factors, expected, rtol=1e-5) else None
