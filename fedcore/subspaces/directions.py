# SPDX-License-Identifier: Apache-2.0
"""Seeded full-rank directions, and the change of a layer that K coefficients along them stand for.

Direction k of a seed has an entry of +1 or -1 for every number of every target layer. FedKSeed (arXiv 2312.06353) and
Ferret (arXiv 2409.06277) draw theirs from a normal distribution, the second cut off at 1 / sqrt(numbers). Signs have
E[z z^T] = I as well, and of all entries with that the least spread: E|z z^T g|^2 is d |g|^2, where normal ones have (d
+ 2) |g|^2. They need one random bit where a sum of bytes that looks normal needs 64, and making the bits is most of the
work.

The bits are SHAKE-128 (FIPS 202), one stream for each 64 rows of a layer, so that any rows can be had without those
before them.

    W = W0 + 2**u sum over k of q_k z_k

Published coefficients are integers q_k of 16 bits with one power of two for all, so for K up to 65,536 the sum is a
32-bit integer a weight, and no order, library or machine changes a bit. It becomes a float32 in one rounding; 2**u is
exact; then comes one addition.

Who keeps that sum and adds to it, version after version and step after step, does so in one unit for the whole run,
2**-28 (`units_of`), and modulo 2**32. Then it could run over, and what is checked is its spread: entries are sums of
random signs, and the bound is twelve standard deviations. Within it the sum is the same number, and rounds to the same
float32."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import ExactnessError
from fedcore.numbers.accumulator import RowScaled
from fedcore.weights.schema import LayerSpec

__all__ = [
    "BLOCK_ROWS",
    "UNIT_BITS",
    "RowsOf",
    "add_directions",
    "as_units",
    "change_of",
    "checksum",
    "direction",
    "project",
    "seed_probabilities",
    "spread_fits",
    "units_of",
]

_DOMAIN = b"fedkrso direction 1"
BLOCK_ROWS = 64
"""Rows of a layer that share a stream of bits."""
UNIT_BITS = 28
"""A running sum is in units of 2**-28: the finest scale of a published state."""
_LARGEST_SPREAD = 2**31 / 12
# A multiple of 8.
_PART = 2**15

RowsOf = Callable[[slice], NDArray[np.float32]]


def _bits(seed: int, index: int, layer: LayerSpec, block: slice) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """The bits of a block, 1 for -1: parts of its numbers, row after row, small enough for the fastest cache."""
    count = (block.stop - block.start) * layer.columns
    numbers = (index, layer.columns, block.start // BLOCK_ROWS)
    head = _DOMAIN + seed.to_bytes(8, "little") + b"".join(number.to_bytes(4, "little") for number in numbers)
    packed = np.frombuffer(hashlib.shake_128(head + layer.name.encode()).digest(-(-count // 8)), np.uint8)
    for start in range(0, count, _PART):
        part = slice(start, min(start + _PART, count))
        yield part, np.unpackbits(packed[start // 8 : -(-part.stop // 8)], count=part.stop - start, bitorder="little")


def _blocks(layer: LayerSpec, rows: slice) -> Iterator[slice]:
    """The blocks that cover some rows."""
    first = rows.start - rows.start % BLOCK_ROWS
    return (slice(start, min(start + BLOCK_ROWS, layer.rows)) for start in range(first, rows.stop, BLOCK_ROWS))


def direction(
    seed: int, index: int, layer: LayerSpec, rows: slice | None = None, out: NDArray[np.int8] | None = None
) -> NDArray[np.int8]:
    """Some rows of a direction, entries +1 and -1.

    Args:
        seed: Names all directions, 0 to 2**64 - 1.
        index: Which of them.
        layer: Each layer has signs of its own.
        rows: Which; None for all.
        out: Where to write them, (rows, n), contiguous; None for a new array.

    Example:
        >>> direction(7, 0, LayerSpec("l", 3, 5)).shape
        (3, 5)
    """
    rows = slice(0, layer.rows) if rows is None else rows
    out = np.empty((rows.stop - rows.start, layer.columns), np.int8) if out is None else out
    flat, origin = out.reshape(-1), rows.start * layer.columns
    for block in _blocks(layer, rows):
        for part, bits in _bits(seed, index, layer, block):
            start = part.start + block.start * layer.columns - origin
            wanted = slice(max(start, 0), min(start + len(bits), len(flat)))
            if wanted.start < wanted.stop:
                np.add(bits, bits, out=bits)
                np.subtract(
                    np.int8(1), bits.view(np.int8)[wanted.start - start : wanted.stop - start], out=flat[wanted]
                )
    return out


def checksum(seed: int, layer: LayerSpec) -> str:
    """16 hex digits over the first direction of a layer: a machine that makes other signs refuses the round."""
    return hashlib.sha256(direction(seed, 0, layer).tobytes()).hexdigest()[:16]


def as_units(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Coefficients rounded to integers of 2**-28, half to even."""
    return np.asarray(np.rint(np.ldexp(values, UNIT_BITS)), np.int64)


def spread_fits(units: NDArray[np.int64]) -> bool:
    """Whether sums of these coefficients with random signs stay within 32 bits."""
    return math.sqrt(sum(int(unit) ** 2 for unit in units)) <= _LARGEST_SPREAD


def units_of(part: RowScaled, place: str) -> NDArray[np.int64]:
    """A published row of coefficients (1, K) as integers of 2**-28, exactly.

    Raises:
        ExactnessError: They are too large for sums of 32 bits, or too fine.
    """
    shift = int(part.exponent[0]) + UNIT_BITS
    if not 0 <= shift <= UNIT_BITS + 7:
        raise ExactnessError(
            f"coefficients in units of 2**{shift - UNIT_BITS}", place=place, remedy="lower method.learning_rate"
        )
    units: NDArray[np.int64] = part.q[0].astype(np.int64) << np.int64(shift)
    if not spread_fits(units):
        raise ExactnessError("coefficients too large for exact sums", place=place, remedy="lower method.learning_rate")
    return units


def add_directions(
    total: NDArray[np.int32], units: NDArray[np.int64], seed: int, layer: LayerSpec, block: slice
) -> None:
    """Add sum over k of units_k z_k to a block of rows, modulo 2**32.

    Args:
        total: int32 (rows, n), contiguous, changed in place.
        units: (K,); those that are zero cost nothing.
        seed: Of the directions.
        layer: Which.
        block: Rows from a multiple of `BLOCK_ROWS`, no more than so many.
    """
    flat, product = total.reshape(-1), np.empty(min(_PART, total.size), np.int32)
    for index in np.flatnonzero(units):
        # c z = c - 2 c b: one product and one addition a number.
        factor = np.int32(-2 * int(units[index]))
        for part, bits in _bits(seed, int(index), layer, block):
            np.multiply(bits, factor, out=product[: len(bits)])
            flat[part] += product[: len(bits)]
    constant = (int(units.sum()) + 2**31) % 2**32 - 2**31
    np.add(total, np.int32(constant), out=total)


def change_of(part: RowScaled, seed: int, layer: LayerSpec, exponent: int) -> RowsOf:
    """The change 2**exponent sum over k of c_k z_k, float32: a function that gives some rows of it, the same bits
    everywhere.

    Args:
        part: The published coefficients (1, K).
        seed: Of the directions.
        layer: Which.
        exponent: u.
    """
    units = part.q[0].astype(np.int64)

    def some(rows: slice) -> NDArray[np.float32]:
        out = []
        for block in _blocks(layer, rows):
            total = np.zeros((block.stop - block.start, layer.columns), np.int32)
            add_directions(total, units, seed, layer, block)
            out.append(total)
        first = rows.start % BLOCK_ROWS
        wanted = np.concatenate(out)[first : first + rows.stop - rows.start].astype(np.float32)
        return np.asarray(np.ldexp(wanted, exponent + int(part.exponent[0])), np.float32)

    return some


def project(change: NDArray[np.float32], seed: int, layer: LayerSpec, indices: Sequence[int]) -> NDArray[np.float64]:
    """Inner products of a layer's change (m, n) with directions; for a node's own use, so float sums are good
    enough."""
    out = np.full(len(indices), change.sum(dtype=np.float64))
    ones = np.empty(_PART, np.float32)
    for block in _blocks(layer, slice(0, layer.rows)):
        flat = change[block].reshape(-1)
        for place, index in enumerate(indices):
            for part, bits in _bits(seed, index, layer, block):
                np.copyto(ones[: len(bits)], bits)
                out[place] -= 2.0 * float(ones[: len(bits)] @ flat[part])
    return out


def seed_probabilities(amplitudes: NDArray[np.float64], uses: NDArray[np.float64]) -> NDArray[np.float64]:
    """How likely each direction is drawn, from how large the loss's slopes along it were: softmax of their mean,
    brought to 0 .. 1.

    FedKSeed-Pro (arXiv 2312.06353, section 4.3, and the authors' code): a direction that was never used counts as slope
    zero.

    Args:
        amplitudes: Sums of absolute slopes (K,), in any unit.
        uses: How often each direction was used.
    """
    mean = np.divide(amplitudes, uses, out=np.zeros_like(amplitudes), where=uses > 0)
    scaled = (mean - mean.min()) / (mean.max() - mean.min() or 1.0)
    weight = np.exp(scaled - scaled.max())
    return np.asarray(weight / weight.sum(), np.float64)
