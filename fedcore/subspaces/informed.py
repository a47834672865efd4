# SPDX-License-Identifier: Apache-2.0
"""The informed pool: rows of P that are principal directions of a layer's input instead of random ones.

The second moment E[x x^T] and the mean of what goes into each target layer are measured once, on calibration text
without labels, by the coordinator. The direction of the mean is left out: it says the same of every text, and a step
along it moves all of them to one class, which is what a client with few labels asks for (docs/results.md). Of what is
left the first K r eigenvectors v, each divided by the root of its eigenvalue so that every row of z = P x varies alike,
become the rows of K subspaces. All rows of a layer are brought to the size of random ones together (the mean square
length of a row is n, before the scale 1 / sqrt(r)), and rounded to int8 with one power of two a row. Eigenvectors are
floats that differ between machines: so they are computed in one place, and what everybody trains in is the file that
this makes, named by its SHA-256 in plans and states.

Directions are dealt like cards, forth and back: row j of subspace k is direction j K + k, or j K + K - 1 - k where j is
odd. So every subspace holds about as much of the input as any other, whichever trains in a round, and first rows, which
are all that a device with less memory trains, are the strongest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedcore.errors import MalformedMessage, ModelError
from fedcore.numbers.accumulator import RowScaled, row_exponents
from fedcore.numbers.records import Record, read_header, read_records, write_records
from fedcore.subspaces.rows.signs import signs
from fedcore.weights.schema import LayerSpec, ModelSchema

__all__ = [
    "INFORMED_FORMAT",
    "ROW_BITS",
    "InformedRows",
    "LayerRows",
    "largest_spread",
    "principal_rows",
    "read_informed",
    "rounded_rows",
    "write_informed",
]

INFORMED_FORMAT: Final = "fedkrso informed 1"
ROW_BITS: Final = 7
"""Bits of a row's integers, without the sign."""
_LARGEST: Final = 2**ROW_BITS - 1
_NUMBER_BITS: Final = 15
_FLOAT64_BITS: Final = 53
# An eigenvalue below this part of the first is rounding error of what was measured in float32.
_LEAST_EIGENVALUE: Final = 1e-6
# Where a layer is at least so wide, and so many times as wide as directions are asked for, they are found by so many
# products with twice as many.
_WIDE: Final = 1024
_FEW: Final = 8
_PRODUCTS: Final = 4
_FILLING_SEED: Final = 0


@dataclass(frozen=True)
class LayerRows:
    """A layer's informed rows.

    Attributes:
        rows: int8 (K r, n), subspace after subspace.
        exponent: int8 (K r,): row i is rows[i] * 2**exponent[i].
    """

    rows: NDArray[np.int8]
    exponent: NDArray[np.int8]


InformedRows = Mapping[str, LayerRows]
"""By layer."""


class _Header(msgspec.Struct, frozen=True):
    subspaces: Annotated[int, Meta(ge=1, le=1024)]
    rank: Annotated[int, Meta(ge=1, le=4096)]


def principal_rows(
    moment: NDArray[np.float64], mean: NDArray[np.float64], subspaces: int, rank: int, place: str
) -> NDArray[np.float64]:
    """Whitened principal directions beside the mean, shared out over subspaces and of the size of random rows.

    Args:
        moment: E[x x^T] of a layer's input (n, n), in any unit.
        mean: E[x] (n,), in any unit.
        subspaces: K.
        rank: r.
        place: The layer.

    Returns:
        (K r, n), whose rows have a mean square length of n. Where the input has fewer directions (of a pooler few texts
        show few), the last rows of subspaces are signs, less their part along the mean.

    Raises:
        ModelError: Nothing was measured of this layer's input.
    """
    columns, count = len(moment), subspaces * rank
    if not np.isfinite(moment).all() or not moment.any():
        raise ModelError(
            "nothing was measured of this layer's input", place=place, remedy="check the text of [calibration]"
        )
    length = np.linalg.norm(mean)
    unit = mean / length if length else mean
    values, vectors = _strongest(_beside(unit, _beside(unit, moment).T), count)
    there = min(count, int((values > _LEAST_EIGENVALUE * values[0]).sum()))
    rows = _beside(unit, np.asarray(signs(_FILLING_SEED, place, count, columns), np.float64))
    rows[:there] = vectors[:, :there].T / np.sqrt(values[:there])[:, None]
    rows[:there] *= np.sqrt(there * columns / (1 / values[:there]).sum())
    return np.asarray(rows[_dealt(subspaces, rank)])


def _strongest(moment: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues (k,), the largest first, and their vectors (n, k) of a symmetric matrix (n, n), k at least `count`
    where there are so many.

    All of them where many are asked for. Of few, subspace iteration: what it gives varies alike and goes with no other
    as exactly as eigenvectors do, and holds all but some thousandths of what they hold, in products of (n, n) with
    (n, 2 count) in place of some n**3 steps that no processor does fast (Halko, Martinsson and Tropp, arXiv 0909.4061,
    algorithm 4.4)."""
    if len(moment) < max(_WIDE, _FEW * count):
        values, vectors = np.linalg.eigh(moment)
        return values[::-1], vectors[:, ::-1]
    basis = np.random.default_rng(_FILLING_SEED).standard_normal((len(moment), 2 * count))
    for _ in range(_PRODUCTS):
        basis = np.linalg.qr(moment @ basis)[0]
    values, turns = np.linalg.eigh(basis.T @ moment @ basis)
    return values[::-1], basis @ turns[:, ::-1]


def _beside(unit: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (k, n) less their part along a direction (n,) of length one, or as they are for none of length zero."""
    return np.asarray(rows - np.outer(rows @ unit, unit))


def _dealt(subspaces: int, rank: int) -> NDArray[np.intp]:
    """The direction of each row."""
    forth = np.arange(subspaces * rank).reshape(rank, subspaces)
    forth[1::2] = forth[1::2, ::-1].copy()
    return np.asarray(forth.T.reshape(-1), np.intp)


def largest_spread(rows: int) -> int:
    """How far the exponents of so many rows may lie apart: a sum over them of 16-bit integers is then exact in
    float64."""
    return _FLOAT64_BITS - _NUMBER_BITS - ROW_BITS - max(0, rows - 1).bit_length()


def rounded_rows(rows: NDArray[np.float64], pool_rows: int) -> LayerRows:
    """Rows as int8 with one power of two each, half to even.

    Args:
        rows: (K r, n).
        pool_rows: Of the whole pool, random rows (exponent 0) with them: exponents keep within `largest_spread` of it.
    """
    exponent = row_exponents(np.abs(rows).max(axis=1, initial=0), _LARGEST)
    exponent = np.maximum(exponent, max(int(exponent.max()), 0) - largest_spread(pool_rows))
    return LayerRows(np.rint(np.ldexp(rows, -exponent[:, None])).astype(np.int8), exponent.astype(np.int8))


def write_informed(path: Path, subspaces: int, rank: int, layers: Iterable[tuple[str, LayerRows]]) -> None:
    """Write the rows of all layers, one layer at a time, in any order that is always the same."""
    header: dict[str, Any] = {"format": INFORMED_FORMAT, "subspaces": subspaces, "rank": rank}
    records = (Record(name, RowScaled(part.rows.astype(np.int16), part.exponent), 8) for name, part in layers)
    write_records(path, header, records)


def read_informed(path: Path, schema: ModelSchema, subspaces: int, rank: int) -> InformedRows:
    """Read the rows that plans name.

    Args:
        path: The file; its SHA-256 is right.
        schema: The model's.
        subspaces: How many of the pool's are informed.
        rank: r.

    Raises:
        MalformedMessage: Not what a plan promises.
    """
    try:
        header = msgspec.convert(read_header(path, INFORMED_FORMAT), _Header)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"not informed rows: {error}", place=path.name) from None
    if (header.subspaces, header.rank) != (subspaces, rank):
        raise MalformedMessage(
            f"{header.subspaces} subspaces of rank {header.rank}, not {subspaces} of {rank}", place=path.name
        )
    return dict(_read(path, {layer.name: layer for layer in schema.layers}, subspaces * rank))


def _read(path: Path, layers: dict[str, LayerSpec], count: int) -> Iterator[tuple[str, LayerRows]]:
    for record in read_records(path, largest=max((count * layer.columns for layer in layers.values()), default=0)):
        layer = layers.pop(record.name, None)
        if layer is None or record.part.shape != (count, layer.columns) or record.bits != 8 or record.difference:
            raise MalformedMessage("rows that the plan does not have, or twice", place=f"{path.name}: {record.name}")
        yield record.name, LayerRows(record.integers.q.astype(np.int8), record.integers.exponent)
    if layers:
        raise MalformedMessage(f"{len(layers)} layers are missing, first {min(layers)}", place=path.name)
