# SPDX-License-Identifier: Apache-2.0
"""What a worker is asked that brings models in and out as GGUF files."""

from __future__ import annotations

import msgspec

from fedcore.config.models import ModelSource

__all__ = ["ImportModel", "Imported", "WriteGguf", "Written"]


class ImportModel(msgspec.Struct, frozen=True, tag="import_model"):
    """Write a GGUF file's model as a Hugging Face folder."""

    path: str
    folder: str


class WriteGguf(msgspec.Struct, frozen=True, tag="write_gguf"):
    """Write a Hugging Face folder's model as a GGUF file."""

    model_folder: str
    """As exported: weights and tokenizer."""
    path: str
    numbers: str
    """What weights are stored in: `q8_0`, `f16` or `f32`."""
    description: str = ""
    """Of where the model is from, for the file's own words."""


class Imported(msgspec.Struct, frozen=True, tag="imported"):
    """Answer to `ImportModel`: the folder is written, not flushed."""

    source: ModelSource


class Written(msgspec.Struct, frozen=True, tag="written"):
    """Answer to `WriteGguf`."""

    words: str
    """What the file is."""
