# SPDX-License-Identifier: Apache-2.0
"""What a worker is asked that makes files: models in and out as GGUF, emulators, and a run's artefact."""

from __future__ import annotations

import msgspec

from fedcore.config.models import ModelSource
from fedcore.config.sections import DataSection, TaskSection
from fedcore.fields.types import BaseKind
from fedcore.round.training import AnyTraining
from fedcore.weights.schema import ModelSchema

__all__ = [
    "AlignEmulator",
    "ArtefactMade",
    "EmulatorAligned",
    "FileCommand",
    "FileEvent",
    "ImportModel",
    "Imported",
    "MakeArtefact",
    "WriteGguf",
    "Written",
]


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


class MakeArtefact(msgspec.Struct, frozen=True, kw_only=True, tag="make_artefact"):
    """Make the file that the run's method asks for, before its first round."""

    training: AnyTraining
    """Of the first round; it says what makes the file (`Training.artefact_kind`)."""
    model_folder: str
    task: TaskSection
    model_schema: ModelSchema
    base_kind: BaseKind
    data: DataSection | None = None
    """Text, for a kind that is made from some; its labels do not matter."""
    rows: int = 0
    """Texts at most."""
    folder: str
    """For what is needed in between."""
    path: str
    """Of the file."""
    threads: int = 1


class ArtefactMade(msgspec.Struct, frozen=True, tag="artefact_made"):
    """The run's artefact is written and flushed."""

    texts: int
    tokens: int


class AlignEmulator(msgspec.Struct, frozen=True, kw_only=True, tag="align_emulator"):
    """Bring an emulator's middle nearer to the full model's, on text; its folder is written anew."""

    full: str
    folder: str
    data: DataSection
    rows: int
    """Texts at most."""
    steps: int
    learning_rate: float
    max_length: int = 128
    """Tokens of a text."""
    seed: int = 0
    threads: int = 1


class EmulatorAligned(msgspec.Struct, frozen=True, tag="emulator_aligned"):
    """Answer to `AlignEmulator`."""

    before: float
    """Error of what comes out of the middle, in units of its mean square, on texts that nothing was aligned with."""
    after: float
    texts: int
    """That it was aligned with."""
    seconds: float


FileCommand = ImportModel | WriteGguf | MakeArtefact | AlignEmulator
FileEvent = Imported | Written | ArtefactMade | EmulatorAligned
