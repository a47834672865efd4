# SPDX-License-Identifier: Apache-2.0
"""From a GGUF file to an ordinary Hugging Face folder, tensor by tensor: no model is ever whole in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edge_client.worker.exchange.architectures import ARCHITECTURES, Architecture, llama3_scaling, unpaired
from edge_client.worker.exchange.ggufile import GgufFile
from edge_client.worker.exchange.tokens import TOKENIZER_FILE, keep_tokenizer, read_tokenizer
from fedcore.config.models import SOURCE_FILE, ModelSource
from fedcore.errors import ModelError
from fedcore.system.durable import sha256_of
from fedcore.weights.checkpoint import NUMPY_TYPES, from_float32, write_safetensors

__all__ = ["import_gguf"]

_FLOATS: Final = {"F32": ("F32", "float32"), "F16": ("F16", "float16")}
_ROTARY: Final = "rope_freqs.weight"
_CHECKED: Final = (
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
)


def import_gguf(path: Path, folder: Path, *, dtype: str = "") -> ModelSource:
    """Write a GGUF file's model as a Hugging Face folder: configuration, tokenizer with chat template, weights.

    Numbers that the file has in float32 or float16 stay as they are, bit by bit. Quantised ones are written in
    bfloat16: that rounds a weight by 0.13 % (root of the mean square), where Q4_1 has rounded it by several percent
    before; `dtype="float32"` keeps every bit of what the file says in twice the space.

    Args:
        path: The file.
        folder: Where to; it is made, and files of the same names in it are overwritten.
        dtype: `float32`, `float16` or `bfloat16`; empty: as said above.

    Returns:
        Where the model is from; it lies in the folder too.

    Raises:
        ModelError: The file is damaged, or says what cannot be understood here in full; the message names it.
        ConfigError: The package gguf is not installed.
    """
    file = GgufFile(path)
    architecture = _architecture(file)
    config = _config(file, architecture)
    stored, torch_name = _stored(file, dtype)
    names = _names(file, config)
    folder.mkdir(parents=True, exist_ok=True)
    config.dtype = torch_name
    config.save_pretrained(folder)
    _save_generation(config, folder)
    read_tokenizer(file).save_pretrained(folder)
    keep_tokenizer(file, folder / TOKENIZER_FILE)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def read(name: str) -> NDArray[Any]:
        source = names[name]
        tensor = file.tensors[source]
        rows, at = np.empty((tensor.rows, tensor.shape[-1]), NUMPY_TYPES[stored]), 0
        for piece in file.pieces(source):
            rows[at : at + len(piece)] = from_float32(piece, stored)
            at += len(piece)
        whole: NDArray[Any] = rows.reshape(tensor.shape)
        turned = heads.get(source.split(".")[-2], 0) if architecture.paired_rotary else 0
        return unpaired(whole, turned) if turned else whole

    table = [(name, stored, file.tensors[source].shape) for name, source in names.items()]
    write_safetensors(folder / "model.safetensors", table, read)
    count = sum(file.types.values())
    source = ModelSource(
        file=path.name,
        sha256=sha256_of(path),
        name=str(file.value("general.name", "")),
        licence=str(file.value("general.license", "")),
        quantised=file.quantisation,
        types=dict(file.types.most_common()),
        parameters=count,
        dtype=torch_name,
    )
    (folder / SOURCE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(source)) + b"\n")
    return source


def _architecture(file: GgufFile) -> Architecture:
    found = next((one for one in ARCHITECTURES if one.name == file.architecture), None)
    if found is None:
        known = ", ".join(dict.fromkeys(one.name for one in ARCHITECTURES))
        raise ModelError(
            f"GGUF files of the architecture {file.architecture!r} are not read here",
            place=str(file.path),
            remedy=f"take the original Hugging Face folder; architectures: {known}",
        )
    understood = {f"{file.architecture}.{key}" for key in (*found.keys, *_CHECKED)}
    strange = [
        key
        for key in file.metadata
        if not key.startswith(("general.", "tokenizer.", "quantize.")) and key not in understood
    ]
    if strange:
        raise ModelError(
            f"the file says {strange[0]} = {str(file.value(strange[0]))[:40]!r}, which is not understood here",
            place=str(file.path),
            remedy="take the original Hugging Face folder",
        )
    return found


def _config(file: GgufFile, architecture: Architecture) -> Any:
    """The model's configuration, of all that the file says."""
    from transformers import AutoConfig

    values: dict[str, Any] = {}
    for key, name in architecture.keys.items():
        value = file.of_model(key)
        if value is None:
            raise ModelError(f"the file does not say {file.architecture}.{key}", place=str(file.path))
        values[name] = _short(value) if isinstance(value, float) else value
    width = values["hidden_size"] // values["num_attention_heads"]
    head = file.of_model("attention.key_length", file.of_model("rope.dimension_count", width))
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.of_model(key, head) != head:
            raise ModelError(f"{key} is {file.of_model(key)}, not the width {head} of a head", place=str(file.path))
    theta = _short(file.of_model("rope.freq_base", 10_000.0))
    rotary: dict[str, Any] = {"rope_type": "default"}
    if _ROTARY in file.tensors:
        factors = np.concatenate(list(file.pieces(_ROTARY))).reshape(-1)
        scaled = llama3_scaling(factors, theta, head) if architecture.scales_rotary else None
        if scaled is None:
            raise ModelError(
                "rotary frequencies are scaled in a way that is not known here", place=f"{file.path}: {_ROTARY}"
            )
        rotary = scaled
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    tokens = file.value("tokenizer.ggml.tokens", ())
    if len(tokens) > rows:
        raise ModelError(f"{len(tokens)} tokens, and an embedding with {rows} rows", place=str(file.path))
    special = {name: file.value(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    return AutoConfig.for_model(
        architecture.model_type,
        **values,
        **architecture.fixed,
        **{key: f"blk.0.{tensor}" in file.tensors for key, tensor in architecture.biases.items()},
        **special,
        head_dim=head,
        vocab_size=rows,
        rope_parameters={"rope_theta": theta, **rotary},
        tie_word_embeddings="output.weight" not in file.tensors,
    )


_SPECIAL: Final = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def _short(value: float) -> float:
    """The shortest number that is the same in float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _stored(file: GgufFile, dtype: str) -> tuple[str, str]:
    """What weights are written in, as safetensors and as torch call it."""
    if dtype:
        return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype], dtype
    return _FLOATS.get(file.quantisation, ("BF16", "bfloat16"))


def _names(file: GgufFile, config: Any) -> Mapping[str, str]:
    """The file's tensor for each of the model's: all of the model, and all of the file.

    Raises:
        ModelError: One of them has more, or another shape.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    out: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        source = names.get_name(name, (".weight", ".bias"))
        if source is None or source not in file.tensors:
            raise ModelError(f"the file has no tensor for the model's {name}", place=str(file.path))
        if file.tensors[source].shape != tuple(parameter.shape):
            raise ModelError(
                f"the shape is {file.tensors[source].shape}, the model's is {tuple(parameter.shape)}",
                place=f"{file.path}: {source}",
            )
        out[name] = source
    over = sorted(set(file.tensors) - {*out.values(), _ROTARY})
    if over:
        raise ModelError(f"the model has nothing for the file's tensor {over[0]}", place=str(file.path))
    return out


def _save_generation(config: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    made = GenerationConfig.from_model_config(config).to_diff_dict()
    (folder / "generation_config.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
