# SPDX-License-Identifier: Apache-2.0
"""Where a model folder is: a path, or `package:folder` for a model that a Python package carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fedcore.errors import ModelError

__all__ = ["resolve_model_folder"]


def resolve_model_folder(text: str, *, place: str) -> Path:
    """The folder on this machine.

    Raises:
        ModelError: No such folder or package.
    """
    package, separator, folder = text.partition(":")
    if separator and "/" not in package and not Path(text).exists():
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"no package {package!r}", place=place, remedy=f"pip install {package.replace('_', '-')}")
        path = Path(next(iter(spec.submodule_search_locations))) / folder
    else:
        path = Path(text).expanduser()
    if not path.is_dir():
        raise ModelError(
            "no such model folder", place=f"{place}: {path}", remedy="set it to a Hugging Face model folder"
        )
    return path
