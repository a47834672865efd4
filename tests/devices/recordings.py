# SPDX-License-Identifier: Apache-2.0
"""Recordings of devices as file trees: one TOML file each, whose head says where every piece comes from.

`[files]` are paths below the root (a name that ends with `/` is an empty folder), `[programs]` commands with what they
print, `[facts]` and `[readings]` what must be found. `python -m devices --record` writes the first two on a board."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.base import Device
from devices.detection import detect

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "devices" / "recorded"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@dataclass(frozen=True)
class Recording:
    files: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    readings: dict[str, Any] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)
    tegrastats: str = ""

    def run(self, command: Sequence[str], timeout_seconds: float) -> str | None:
        return self.programs.get(" ".join(command))

    def put(self, root: Path, changed: Mapping[str, bytes] | None = None) -> Path:
        for name, text in self.files.items():
            path = root / name
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((changed or {}).get(name, text.encode()))
        return root

    def device(self, root: Path, **options: Any) -> Device:
        return detect(self.put(root), self.run, **options)


def recording(name: str) -> Recording:
    return Recording(**tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")))
