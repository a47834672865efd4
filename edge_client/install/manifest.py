# SPDX-License-Identifier: Apache-2.0
"""What a bundle holds, by SHA-256: a copy that went wrong is found before anything of it runs.

`SHA256SUMS` is in the form that `sha256sum --check` reads, so that a board can check it before it has Python packages.
It guards against damage. Against somebody who changes the bundle, compare the digest of `SHA256SUMS` itself, which
making and checking both print."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fedcore.errors import ConfigError

__all__ = ["SUMS", "check_sums", "file_sha256", "write_sums"]

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path) -> str:
    """Write the sums of every file in a folder; returns the digest of the sums themselves."""
    text = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in _names(folder))
    (folder / SUMS).write_text(text, encoding="utf-8")
    return file_sha256(folder / SUMS)


def check_sums(folder: Path) -> str:
    """Read every file again; returns the digest of the sums themselves.

    Raises:
        ConfigError: A file is damaged, missing, or was never in the bundle.
    """
    try:
        # Lines end where `sha256sum` ends them, and nowhere else.
        lines = (folder / SUMS).read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"no {SUMS} that can be read",
            place=str(folder),
            remedy="write the folder that `fedkrso client bundle` made",
        ) from None
    wanted: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ConfigError("not a line of sums", place=f"{folder / SUMS}:{number}", remedy="copy the bundle again")
        wanted[found.group(2)] = found.group(1)
    there = set(_names(folder))
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - there)]
    wrong += [f"{name} was never in the bundle" for name in sorted(there - wanted.keys())]
    wrong += [
        f"{name} is damaged" for name in sorted(wanted.keys() & there) if file_sha256(folder / name) != wanted[name]
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError("; ".join(wrong[:3]) + more, place=str(folder), remedy="copy the bundle again")
    return file_sha256(folder / SUMS)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(
        name for path in folder.rglob("*") if path.is_file() and (name := path.relative_to(folder).as_posix()) != SUMS
    )
