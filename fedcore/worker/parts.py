# SPDX-License-Identifier: Apache-2.0
"""What is asked of a worker that holds a part of a model: the first blocks on a device, with a head of their own, or
the blocks that follow at the coordinator."""

from __future__ import annotations

import msgspec

__all__ = ["Begin", "Beginning", "Begun", "Finish", "Finished", "HiddenStates", "LoadPart", "PartLoaded"]


class HiddenStates(msgspec.Struct, frozen=True):
    """What blocks made of a text: 8 bits a number, a scale for each token."""

    tokens: int
    numbers: bytes
    """(tokens, n), one signed byte each."""
    scales: bytes
    """(tokens,), float32, little-endian."""


class LoadPart(msgspec.Struct, frozen=True, kw_only=True, tag="load_part"):
    """Hold a finished classifier, all of whose blocks are a device's part, or of which the blocks from `blocks` on
    are the coordinator's."""

    model_folder: str
    blocks: int = 0
    """How many a device has; 0: this folder is a device's."""
    threads: int = 1


class PartLoaded(msgspec.Struct, frozen=True, kw_only=True, tag="part_loaded"):
    """Answer to `LoadPart`."""

    front: str
    """SHA-256 of the weights before the border: both sides must have the same."""
    labels: tuple[str, ...]
    width: int
    """Numbers in a hidden state."""
    max_length: int
    """Tokens of a text."""


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Answer texts with the first blocks alone."""

    texts: tuple[tuple[str, str | None], ...]


class Beginning(msgspec.Struct, frozen=True):
    """Of one text."""

    scores: tuple[float, ...]
    """The probability of every label, by the first blocks' own head."""
    hidden: HiddenStates
    embedding: bytes
    """(n,) signed bytes: what texts are compared by."""


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """Answer to `Begin`, in its order."""

    texts: tuple[Beginning, ...]


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Answer what first blocks made of texts."""

    texts: tuple[HiddenStates, ...]


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """Answer to `Finish`, in its order."""

    scores: tuple[tuple[float, ...], ...]
    embeddings: tuple[bytes, ...]
    """As `Beginning.embedding`, of the same numbers."""
