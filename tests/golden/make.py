# SPDX-License-Identifier: Apache-2.0
"""Writes the golden vectors from the written definitions alone: plain Python, no NumPy, nothing of fedcore."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from statistics import NormalDist


def sign_rows(seed: int, layer: str, r: int, n: int) -> list[str]:
    head = b"fedkrso projection 1" + seed.to_bytes(8, "little") + n.to_bytes(4, "little") + layer.encode("utf-8")
    width = (n + 7) // 8
    data = hashlib.shake_128(head).digest(r * width)
    return [data[i * width : (i + 1) * width].hex() for i in range(r)]


def head(kind: str, seed: int, layer: str, n: int) -> bytes:
    return f"fedkrso {kind} 1".encode() + seed.to_bytes(8, "little") + n.to_bytes(4, "little") + layer.encode("utf-8")


def gaussian(seed: int, layer: str, r: int, n: int) -> list[list[int]]:
    """Byte b is the quantile (b + 1/2) / 256 of the normal distribution, times 44, to the nearest integer."""
    data = hashlib.shake_128(head("gaussian", seed, layer, n)).digest(r * n)
    return [[round(44 * NormalDist().inv_cdf((b + 0.5) / 256)) for b in data[i * n : (i + 1) * n]] for i in range(r)]


def coordinate(seed: int, layer: str, r: int, n: int) -> list[list[int]]:
    """Inputs in the order of the upper 63 bits of their words; the lowest bit is the sign."""
    data = hashlib.shake_128(head("coordinate", seed, layer, n)).digest(8 * n)
    words = [int.from_bytes(data[8 * j : 8 * j + 8], "little") for j in range(n)]
    picked = sorted(range(n), key=lambda j: words[j] >> 1)[:r]
    return [[(1 - 2 * (words[j] & 1)) * (j == at) for j in range(n)] for at in picked]


def divided(number: int, divisor: int) -> int:
    """To the nearest, half away from zero."""
    return (1 if number >= 0 else -1) * ((2 * abs(number) + divisor) // (2 * divisor))


def orthonormal(seed: int, layer: str, r: int, n: int) -> list[list[int]]:
    """Gram-Schmidt on quantiles in units of 2**-10; each row to length 32 sqrt(n), roots to 15 bits; little rests are
    passed over."""
    data = hashlib.shake_128(head("orthonormal", seed, layer, n)).digest(100 * r * n)
    rows: list[list[int]] = []
    for at in range(100 * r):
        rest = [1024 * round(44 * NormalDist().inv_cdf((b + 0.5) / 256)) for b in data[at * n : (at + 1) * n]]
        for row in rows:
            along, square = sum(a * b for a, b in zip(rest, row, strict=True)), sum(b * b for b in row)
            rest = [a - divided(along * b, square) for a, b in zip(rest, row, strict=True)]
        square = sum(a * a for a in rest)
        if square >= n * 1408**2:
            length = 32 * math.isqrt(n << 30)
            rows.append([max(-127, min(127, divided(a * length, math.isqrt(square << 30)))) for a in rest])
        if len(rows) == r:
            return rows
    raise AssertionError("no such rows")


def main() -> None:
    others = []
    for make in (gaussian, coordinate, orthonormal):
        for seed, layer, r, n in (
            (7, "encoder.layer.0.output.dense", 4, 13),
            (2**64 - 1, "schicht.ü", 3, 20),
            (1, "a", 4, 4),
        ):
            others.append(
                {
                    "kind": make.__name__,
                    "seed": str(seed),
                    "layer": layer,
                    "r": r,
                    "n": n,
                    "rows": make(seed, layer, r, n),
                }
            )
    Path(__file__).with_name("projections.json").write_text(json.dumps(others) + "\n", encoding="utf-8")
    cases = []
    for seed, layer, r, n in (
        (0, "a", 1, 8),
        (7, "encoder.layer.0.output.dense", 4, 13),
        (2**64 - 1, "schicht.ü", 3, 20),
    ):
        rows = sign_rows(seed, layer, r, n)
        first = [-1 if int(rows[0][2 * (j // 8) : 2 * (j // 8) + 2], 16) >> (j % 8) & 1 else 1 for j in range(n)]
        cases.append({"seed": str(seed), "layer": layer, "r": r, "n": n, "rows_hex": rows, "first_row": first})
    Path(__file__).with_name("projection.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
