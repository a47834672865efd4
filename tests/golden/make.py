# SPDX-License-Identifier: Apache-2.0
"""Writes the golden vectors from the written definitions alone: plain Python, no NumPy, nothing of fedcore."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def sign_rows(seed: int, layer: str, r: int, n: int) -> list[str]:
    head = b"fedkrso projection 1" + seed.to_bytes(8, "little") + n.to_bytes(4, "little") + layer.encode("utf-8")
    width = (n + 7) // 8
    data = hashlib.shake_128(head).digest(r * width)
    return [data[i * width : (i + 1) * width].hex() for i in range(r)]


def main() -> None:
    cases = []
    for seed, layer, r, n in ((0, "a", 1, 8), (7, "encoder.layer.0.output.dense", 4, 13), (2**64 - 1, "schicht.ü", 3, 20)):
        rows = sign_rows(seed, layer, r, n)
        first = [-1 if int(rows[0][2 * (j // 8) : 2 * (j // 8) + 2], 16) >> (j % 8) & 1 else 1 for j in range(n)]
        cases.append({"seed": str(seed), "layer": layer, "r": r, "n": n, "rows_hex": rows, "first_row": first})
    Path(__file__).with_name("projection.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
