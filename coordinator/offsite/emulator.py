# SPDX-License-Identifier: Apache-2.0
"""From a full model's folder to an emulator's: fewer blocks, everything else as it is, tensor by tensor.

Blocks are found by the names of their tensors, of architectures whose blocks are all alike and do not depend on their
place; another one is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from fedcore.config.models import SOURCE_FILE
from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Checkpoint, write_safetensors
from fedcore.weights.offsite import OFFSITE_FILE, OffsiteMap, fingerprint, kept_blocks

__all__ = ["ARCHITECTURES", "Blocks", "blocks_of", "write_emulator"]

_LIKE_LLAMA: Final = ("num_hidden_layers", "layers")
_LIKE_BERT: Final = ("num_hidden_layers", "encoder.layer")
ARCHITECTURES: Final = {
    "bert": _LIKE_BERT,
    "roberta": _LIKE_BERT,
    "xlm-roberta": _LIKE_BERT,
    "distilbert": ("n_layers", "transformer.layer"),
    "gpt2": ("n_layer", "h"),
    "gpt_neox": _LIKE_LLAMA,
    "llama": _LIKE_LLAMA,
    "mistral": _LIKE_LLAMA,
    "qwen2": _LIKE_LLAMA,
    "qwen3": _LIKE_LLAMA,
}
"""By `model_type`: the key of `config.json` that counts blocks, and where these are in the names of tensors."""
_BY_PLACE: Final = ("scale_attn_by_inverse_layer_idx", "use_sliding_window")
"""Settings with which a block computes otherwise in another place."""
_LISTS: Final = ("layer_types",)
"""Settings that say something of each block."""
_HEAD: Final = re.compile(r"(score|classifier|pre_classifier)\.")
"""Of a tuned classifier, as transformers names it; a sentence model's is in a file of its own, which is not copied."""
_NOT_COPIED: Final = (".safetensors", ".bin", ".index.json", ".md", ".gguf", ".onnx", ".h5", ".msgpack")


@dataclass(frozen=True)
class Blocks:
    """Where a model's blocks are.

    Attributes:
        count: How many.
        prefix: What stands before a block's number in the names of its tensors.
        key: Of `config.json`, that counts them.
    """

    count: int
    prefix: str
    key: str


def blocks_of(checkpoint: Checkpoint) -> Blocks:
    """Find a model's blocks.

    Raises:
        ModelError: Its architecture is not known here, or its tensors are not what it says; named.
    """
    config, place = checkpoint.config, str(checkpoint.folder / "config.json")
    kind = str(config.get("model_type", ""))
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"no emulator is made of a model of type {kind!r} (types: {', '.join(ARCHITECTURES)})", place=place
        )
    for name in _BY_PLACE:
        if config.get(name):
            raise ModelError(f"{name} is set: its blocks compute otherwise in another place", place=place)
    if any(entry.dtype in ("I8", "U8") for entry in checkpoint.tensors.values()):
        remedy = "use the original, in floating point"
        raise ModelError("the model is quantised already", place=str(checkpoint.folder), remedy=remedy)
    key, where = ARCHITECTURES[kind]
    pattern = re.compile(rf"((?:\w+\.)*{re.escape(where)}\.)(\d+)\.(.+)")
    found: dict[str, dict[int, set[tuple[str, tuple[int, ...]]]]] = {}
    for name, entry in checkpoint.tensors.items():
        if match := pattern.fullmatch(name):
            found.setdefault(match[1], {}).setdefault(int(match[2]), set()).add((match[3], entry.shape))
    count = config.get(key)
    alike = len(found) == 1 and len({frozenset(block) for block in next(iter(found.values())).values()}) == 1
    if not isinstance(count, int) or not alike or set(next(iter(found.values()))) != set(range(count)):
        raise ModelError(
            f"{key} is {count}, and there are not so many blocks {where}.N that are alike",
            place=str(checkpoint.folder),
            remedy="use a complete checkpoint of one text model",
        )
    return Blocks(count, next(iter(found)), key)


def write_emulator(full: Path, folder: Path, *, first: int, last: int, middle: int | None = None) -> OffsiteMap:
    """Write an emulator of a full model; with the first blocks and nothing after them (the small model of `[ask]`) it
    has no classifier's head.

    Args:
        full: The full model's folder.
        folder: A new or an empty one.
        first: Blocks at the beginning, which train.
        last: Blocks at the end, which train.
        middle: Blocks kept between them, which do not; None: half of them, rounded up.

    Returns:
        What was written into the folder beside.

    Raises:
        ModelError: No emulator can be made of it; why.
    """
    checkpoint = Checkpoint(full)
    blocks = blocks_of(checkpoint)
    between = blocks.count - first - last
    kept = kept_blocks(blocks.count, first, last, (between + 1) // 2 if middle is None else middle)
    config = dict(checkpoint.config)
    changed: dict[str, Any] = {blocks.key: len(kept)}
    changed |= {key: [config[key][block] for block in kept] for key in _LISTS if config.get(key)}
    found = OffsiteMap(
        full_sha256=fingerprint(checkpoint),
        prefix=blocks.prefix,
        kept=kept,
        first=first,
        last=last,
        config={key: config[key] for key in changed},
    )
    folder.mkdir(parents=True, exist_ok=True)
    _copy_files(full, folder)
    (folder / "config.json").write_text(json.dumps(config | changed, indent=1) + "\n", encoding="utf-8")
    # A head that was fitted to what the last block says fits no other: a front alone begins with a new one.
    front = first == len(kept) < blocks.count
    names = {
        own: name
        for name in checkpoint.tensors
        if (own := found.from_full(name)) is not None and not (front and _HEAD.match(name))
    }
    table = [(own, checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape) for own, name in names.items()]

    def read(own: str) -> NDArray[Any]:
        return checkpoint.read(names[own])

    write_safetensors(folder / "model.safetensors", table, read)
    (folder / OFFSITE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return found


def _copy_files(full: Path, folder: Path) -> None:
    """What is not weights: tokenizer, templates, and how a sentence model pools."""
    for path in [*full.iterdir(), *full.glob("*/config.json")]:
        if path.is_file() and not path.name.endswith(_NOT_COPIED) and path.name != SOURCE_FILE:
            target = folder / path.relative_to(full)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
