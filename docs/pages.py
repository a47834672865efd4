# SPDX-License-Identifier: Apache-2.0
"""What `mkdocs` builds beside the pages of this folder: the README as first page, and the API reference.

A room, that is a folder with code, is a page; a page shows its modules in the order of their names. Nobody keeps a
list."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parent.parent
_FLOORS = ("fedkrso", "fedcore", "devices", "edge_client", "coordinator")
_OTHER_PLACES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
"""Pages that lie beside the README or below it, and what they are called here."""


class Examples(griffe.Extension):
    """Shows `Example:` of a docstring as code: the parser knows `Examples:` only."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section where a docstring has one."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the menu: floors, and rooms within each."""
    assert config.nav is not None
    config.nav.append({"Reference": [{floor: [_page(room) for room in _rooms(floor)]} for floor in _FLOORS]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages that are written elsewhere or nowhere."""
    made = {"index.md": _moved(_ROOT / "README.md")}
    made |= {name: _moved(_ROOT / source) for source, name in _OTHER_PLACES.items()}
    made |= {_page(room): _reference(room) for floor in _FLOORS for room in _rooms(floor)}
    for name, content in made.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=content))
    return files


def _moved(source: Path) -> str:
    """A page that lies elsewhere, its links as seen from `docs/`."""
    text = re.sub(r"\]\((?:\.{1,2}/)?docs/", "](", source.read_text(encoding="utf-8"))
    for place, name in _OTHER_PLACES.items():
        text = text.replace(f"]({place}", f"]({name}")
    return text


def _rooms(floor: str) -> list[Path]:
    """The floor itself and every folder with code in it."""
    return sorted({path.parent for path in (_ROOT / floor).rglob("__init__.py")})


def _page(room: Path) -> str:
    return f"api/{'.'.join(room.relative_to(_ROOT).parts)}.md"


def _reference(room: Path) -> str:
    """One page: the room's sentence, then each of its modules that offers something."""
    name = ".".join(room.relative_to(_ROOT).parts)
    sentence = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = [
        f"::: {name}.{path.stem}"
        for path in sorted(room.glob("*.py"))
        if not path.stem.startswith("_") and "__all__" in path.read_text(encoding="utf-8")
    ]
    if "__all__" in (room / "__init__.py").read_text(encoding="utf-8"):
        return f"# {name}\n\n" + "\n\n".join([f"::: {name}\n    options:\n      show_root_heading: false", *modules])
    return f"# {name}\n\n" + "\n\n".join([sentence, *modules]) + "\n"
