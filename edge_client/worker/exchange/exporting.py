# SPDX-License-Identifier: Apache-2.0
"""From a Hugging Face folder to a GGUF file that llama.cpp loads, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.exchange.architectures import Architecture, llama3_factors, of_config, paired
from edge_client.worker.exchange.ggufile import require_gguf
from edge_client.worker.exchange.tokens import add_tokenizer
from fedcore.errors import ConfigError, ModelError
from fedcore.weights.checkpoint import Checkpoint, to_float32

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["NUMBERS", "export_gguf"]

NUMBERS: Final = ("q8_0", "f16", "f32")
"""What weights can be stored in."""
_BLOCK: Final = 32
_QUANTISATION_VERSION: Final = 2
_HEADS: Final = re.compile(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file: its name, its shape in numbers, what it is stored in, and the numbers."""

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], NDArray[np.float32]]


def export_gguf(folder: Path, path: Path, numbers: str = "q8_0", *, description: str = "") -> str:
    """Write a folder's model as a GGUF file, with tokenizer and chat template.

    Matrices are stored as asked; vectors (norms, biases) always in float32, as llama.cpp expects them. A matrix whose
    rows are no multiple of 32 numbers cannot be stored in q8_0 and becomes f16. One tensor at a time is in memory.

    Args:
        folder: Weights and tokenizer.
        path: Of the file; written beside and renamed.
        numbers: One of `NUMBERS`.
        description: Put into the file's own words.

    Returns:
        What was written, in words.

    Raises:
        ModelError: A model that a GGUF file cannot say, or that llama.cpp would compute differently; named.
        ConfigError: The package gguf is not installed, or no such kind of numbers.
    """
    require_gguf()
    from gguf import GGUFWriter
    from transformers import AutoConfig

    if numbers not in NUMBERS:
        raise ConfigError(f"no numbers {numbers!r}", place="--gguf", remedy=", ".join(NUMBERS))
    config = AutoConfig.from_pretrained(str(folder))
    architecture = of_config(config, str(folder))
    tensors = list(_tensors(Checkpoint(folder), config, architecture, numbers))
    half = path.with_name(path.name + ".half")
    writer = GGUFWriter(half, architecture.name)
    try:
        _add_metadata(writer, config, architecture, numbers, description)
        add_tokenizer(writer, folder, config.vocab_size)
        _write(writer, tensors)
    except BaseException:
        writer.close()
        half.unlink(missing_ok=True)
        raise
    writer.close()
    half.replace(path)
    count = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    size = path.stat().st_size / 1e6
    return f"GGUF file of {architecture.name}, {count / 1e6:.1f} M parameters in {numbers}, {size:.0f} MB"


def _tensors(checkpoint: Checkpoint, config: Any, architecture: Architecture, numbers: str) -> list[_Tensor]:
    """All of the folder's tensors under the file's names.

    Raises:
        ModelError: One has no name there, or no tensor has the name that llama.cpp asks for.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    out: dict[str, _Tensor] = {}
    for name, entry in checkpoint.tensors.items():
        target = names.get_name(name, (".weight", ".bias"))
        if target is None:
            raise ModelError(
                f"a GGUF file of {architecture.name} has no place for {name}", place=str(checkpoint.folder)
            )
        if target == "output.weight" and config.tie_word_embeddings:
            continue

        def read(name: str = name, target: str = target) -> NDArray[np.float32]:
            values = to_float32(checkpoint.read(name), checkpoint.tensors[name].dtype)
            turned = _HEADS.fullmatch(target) if architecture.paired_rotary else None
            return paired(values, heads[turned[1]]) if turned else values

        out[target] = _Tensor(target, entry.shape, _kind(entry.shape, numbers), read)
    rotary = config.rope_parameters
    if rotary.get("rope_type", "default") == "llama3":
        factors = llama3_factors(rotary, rotary["rope_theta"], _head(config))
        out["rope_freqs.weight"] = _Tensor("rope_freqs.weight", factors.shape, "F32", lambda: factors)
    # llama.cpp takes the embedding where there is no head.
    if "output.weight" not in out and not config.tie_word_embeddings:
        raise ModelError("no output head, and it is not tied to the embedding", place=str(checkpoint.folder))
    return list(out.values())


def _kind(shape: tuple[int, ...], numbers: str) -> str:
    """What a tensor is stored in, in the format's words."""
    if len(shape) < 2:
        return "F32"
    return "F16" if numbers == "q8_0" and shape[-1] % _BLOCK else numbers.upper()


def _head(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_metadata(writer: GGUFWriter, config: Any, architecture: Architecture, numbers: str, description: str) -> None:
    from gguf import GGUFValueType, LlamaFileType

    kinds = {"q8_0": LlamaFileType.MOSTLY_Q8_0, "f16": LlamaFileType.MOSTLY_F16, "f32": LlamaFileType.ALL_F32}
    writer.add_type("model")
    writer.add_file_type(kinds[numbers])
    writer.add_quantization_version(_QUANTISATION_VERSION)
    if description:
        writer.add_description(description)
    for key, name in architecture.keys.items():
        value = getattr(config, name)
        kind = GGUFValueType.FLOAT32 if isinstance(value, float) else GGUFValueType.UINT32
        writer.add_key_value(f"{architecture.name}.{key}", value, kind)
    head = _head(config)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write(writer: GGUFWriter, tensors: list[_Tensor]) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape, quantize

    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.kind]
        shape = quant_shape_to_byte_shape(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.kind]
        writer.write_tensor_data(quantize(np.ascontiguousarray(tensor.read()), kind).reshape(-1).view(np.uint8))
