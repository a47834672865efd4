# SPDX-License-Identifier: Apache-2.0
"""How a folder's model is computed without torch and transformers: which of its tensors are what, the numbers that its
configuration comes down to, its tokenizer.

Nothing here knows of an architecture. A recipe is written by a worker that has torch, of the model as transformers
built it, after the compiled pass gave what transformers gives of a few tokens, and after what the recipe makes was seen
to be the same tensors (`edge_client.worker.generate.recording`). It lies in the cache folder, under a name that is a
hash of all that it was made from: the folder's files but for the numbers of its weights, this code, and the versions of
transformers and tokenizers. If any of them changes, there is none, and torch answers and writes it anew."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from edge_client.process.route import cache_folder
from edge_client.worker.compiled.tokenizer import TokenizerRecipe
from fedcore.weights.checkpoint import Checkpoint
from fedcore.weights.schema import ModelSchema

__all__ = ["BlockRecipe", "LinearRecipe", "NormRecipe", "Recipe", "keep_recipe", "kept_recipe"]

_MOST_KEPT: Final = 32
_WEIGHTS: Final = frozenset((".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack"))
_TEMPLATES: Final = "additional_chat_templates"
_CODE: Final = (Path(__file__).parent, Path(__file__).parent.parent / "generate")


class NormRecipe(msgspec.Struct, frozen=True):
    """A norm: the checkpoint's tensor, and what is added to the mean of squares."""

    weight: str
    epsilon: float


class LinearRecipe(msgspec.Struct, frozen=True):
    """A linear layer: the checkpoint's tensors; no bias where its name is empty."""

    weight: str
    bias: str = ""


class BlockRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder layer."""

    before_attention: NormRecipe
    query: LinearRecipe
    key: LinearRecipe
    value: LinearRecipe
    query_norm: NormRecipe | None
    key_norm: NormRecipe | None
    out: LinearRecipe
    before_mlp: NormRecipe
    gate: LinearRecipe
    up: LinearRecipe
    down: LinearRecipe


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A model of Llama's shape; numbers as `edge_client.worker.compiled.native.Parts` has them."""

    table: str
    blocks: tuple[BlockRecipe, ...]
    norm: NormRecipe
    head: LinearRecipe
    frequencies: tuple[float, ...]
    angle_scale: float
    heads: int
    key_heads: int
    features: int
    scaling: float
    positions: int
    """Tokens that the model can see."""
    end_tokens: tuple[int, ...]
    schema: ModelSchema
    """Its layers that are held in 8 bits, where nobody says otherwise."""
    tokenizer: TokenizerRecipe


def kept_recipe(checkpoint: Checkpoint, environment: Mapping[str, str]) -> Recipe | None:
    """The recipe of a model folder, if there is one for it as it is now."""
    path = _path(checkpoint, environment)
    try:
        return None if path is None else msgspec.msgpack.decode(path.read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def keep_recipe(checkpoint: Checkpoint, recipe: Recipe, environment: Mapping[str, str]) -> bool:
    """Keep a model folder's recipe, and of all of them the newest; whether that was possible."""
    path = _path(checkpoint, environment)
    if path is None:
        return False
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.msgpack.encode(recipe))
        part.replace(path)
        kept = sorted(path.parent.glob("recipe-*.msgpack"), key=lambda one: one.stat().st_mtime_ns)
        for old in kept[:-_MOST_KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        return False
    return True


def _path(checkpoint: Checkpoint, environment: Mapping[str, str]) -> Path | None:
    folder = cache_folder(environment)
    return None if folder is None else folder / f"recipe-{_key(checkpoint)}.msgpack"


def _key(checkpoint: Checkpoint) -> str:
    found = hashlib.sha256(repr([(name, _version(name)) for name in ("transformers", "tokenizers")]).encode())
    for file in sorted(file for folder in _CODE for file in folder.iterdir() if file.suffix in (".py", ".c", ".h")):
        found.update(f"/{file.name}/{hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    for name, entry in sorted(checkpoint.tensors.items()):
        found.update(repr((name, entry.dtype, entry.shape)).encode())
    for folder in (checkpoint.folder, checkpoint.folder / _TEMPLATES):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.is_file() and file.suffix not in _WEIGHTS:
                found.update(f"/{file.name}/{hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return found.hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
