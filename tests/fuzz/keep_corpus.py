# SPDX-License-Identifier: Apache-2.0
"""Keep what fuzzing found: `python tests/fuzz/keep_corpus.py FOLDER` adds `FOLDER/<target>/corpus/*` to
`tests/fuzz/corpus/<target>.bin`.

Kept are the fewest inputs, small ones first, that together take every step from line to line of our code that all of
them take. `test_decoders.py` replays them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
sys.path.insert(0, str(_ROOT))

from tests.fuzz.targets import TARGETS  # noqa: E402

_LARGEST_INPUT_BYTES = 4096
_OURS = tuple(str(_ROOT / package) for package in ("fedcore", "coordinator", "edge_client"))
Step = tuple[str, int, int]


def steps_of(target: str, data: bytes) -> set[Step]:
    """Every (file, line, next line) of our code that an input takes."""
    steps: set[Step] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        if event in ("line", "exception"):
            number = -frame.f_lineno if event == "exception" else frame.f_lineno
            steps.add((frame.f_code.co_filename, last.get(id(frame), 0), number))
            last[id(frame)] = number
        return trace

    sys.settrace(trace)
    try:
        TARGETS[target](data)
    finally:
        sys.settrace(None)
    return steps


def fewest(target: str, inputs: Iterable[bytes]) -> list[bytes]:
    """The inputs that are kept."""
    seen: set[Step] = set()
    kept = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        new = steps_of(target, data) - seen if len(data) <= _LARGEST_INPUT_BYTES else set()
        if new:
            seen |= new
            kept.append(data)
    return kept


def main() -> None:
    """Add every target of a folder."""
    for target in TARGETS:
        path = _HERE / "corpus" / f"{target}.bin"
        known = msgpack.unpackb(path.read_bytes()) if path.exists() else []
        found = [file.read_bytes() for file in (Path(sys.argv[1]) / target / "corpus").glob("*")]
        if kept := fewest(target, [*known, *found]):
            path.write_bytes(msgpack.packb(kept))
            print(f"{target}: {len(kept)} of {len(known) + len(found)} inputs, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
