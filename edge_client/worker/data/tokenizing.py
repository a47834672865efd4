# SPDX-License-Identifier: Apache-2.0
"""A model folder's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fedcore.errors import ModelError

__all__ = ["tokenizer_of"]


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer that a model folder has.

    Raises:
        ModelError: It has none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"no tokenizer: {first}", place=str(folder), remedy="copy tokenizer.json into the model folder"
        ) from None
