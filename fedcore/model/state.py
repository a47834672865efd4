# SPDX-License-Identifier: Apache-2.0
"""The cumulative state, exact at the coordinator, rounded once for publication, the same at every replica.

W(t) = W0 + sum over k of S_k P_k. The coordinator keeps S (m, K r) as 64-bit integers in units of 2**-32 and adds each
round's mean to it. What it publishes is integers of 8 to 16 bits with one power-of-two scale per row, shared by all
seeds: roundings do not accumulate, and because scales only ever double, the difference between two published versions
is exact and small. Tensors trained whole (a task head) are the same thing with one subspace, the identity: their
published part is what training added to the initial value.

A published state may bring factors of a product that is merged before the next round (`fedcore.round.training.UP`):
matrices with as many columns or rows as that round's participants need, and none in the state that a generation begins
with. An empty matrix has no record."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedcore.errors import ExactnessError, MalformedMessage
from fedcore.fields.checked import RoundNumber
from fedcore.fields.formats import PUBLISHED_STATE
from fedcore.numbers.accumulator import FRACTION_BITS, Means, RowScaled, row_exponents, scaled_fixed
from fedcore.numbers.records import Record, read_header, read_records, write_records
from fedcore.round.training import SECOND, UP, Training, merged_entries
from fedcore.weights.schema import ModelSchema

__all__ = ["MAX_STACKED", "PUBLISHED_FORMAT", "ExactState", "PublishedState", "model_digest"]

PUBLISHED_FORMAT = f"fedkrso published state {PUBLISHED_STATE}"
# 2**-28: a first scale fine enough for learning rates of 1e-6; rows double it as they grow.
_FINEST_EXPONENT = -28
MAX_STACKED = 2**16


class _Header(msgspec.Struct, frozen=True):
    """What a published state file says about itself."""

    version: RoundNumber
    seeds: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=1024)]
    rank: Annotated[int, Meta(ge=0, le=4096)]
    base_version: RoundNumber | None
    stacked: Annotated[int, Meta(ge=0, le=MAX_STACKED)] = 0
    """Columns of each product's left factor, rows of its right one."""
    rows_from: Annotated[str, Meta(max_length=128)] = "signs"


@dataclass(frozen=True)
class PublishedState:
    """The learned state that every replica computes with: exactly these numbers.

    Attributes:
        version: The round whose published state it is; 0 before the first.
        seeds: The pool that the layers' columns belong to; none in methods without subspaces.
        rank: Columns per seed, or of the factors.
        entries: By name, int16 (m, c) and int8 exponents (m,).
        rows_from: What rows of P come from (`fedcore.round.training.Training.rows_from`).
    """

    version: int
    seeds: tuple[int, ...]
    rank: int
    entries: Mapping[str, RowScaled]
    rows_from: str = "signs"

    @classmethod
    def zero(cls, training: Training, schema: ModelSchema) -> PublishedState:
        """The state before the first round."""
        entries = {name: _zero_rows(shape) for name, shape in training.shapes(schema).items()}
        return cls(0, training.seeds, training.rank, entries, training.rows_from)

    @property
    def subspaces(self) -> tuple[tuple[int, ...], int, str]:
        """What layers' columns are coefficients of: seeds, rank, and what rows come from."""
        return self.seeds, self.rank, self.rows_from

    @property
    def stacked(self) -> int:
        """Columns of the left factors of the products that the next merge takes; 0 for none."""
        return next((part.q.shape[1] for name, part in self.entries.items() if name.endswith(UP)), 0)

    def digest(self) -> str:
        """SHA-256 over seeds, rank, what rows come from, and every entry in name order; independent of how the state
        travelled."""
        digest = hashlib.sha256(f"fedkrso state 1/{self.version}/{self.rank}/{self.seeds}".encode())
        if self.rows_from != "signs":
            digest.update(f"/{self.rows_from}".encode())
        for name in sorted(self.entries):
            part = self.entries[name]
            digest.update(f"/{name}/{part.q.shape}/".encode())
            digest.update(part.exponent.tobytes())
            digest.update(part.q.astype("<i2").tobytes())
        return digest.hexdigest()

    def refreshed(self, training: Training, schema: ModelSchema) -> PublishedState:
        """The state after a merge: what was merged is zero under new seeds, the rest kept."""
        merged = merged_entries(schema)
        zero = {name: _zero_rows(shape) for name, shape in training.layer_shapes(schema).items() if name in merged}
        return PublishedState(self.version, training.seeds, training.rank, {**self.entries, **zero}, training.rows_from)

    def follows(self, previous: PublishedState) -> bool:
        """Whether there is a difference to an earlier state: same subspaces and shapes."""
        shapes = [{name: part.q.shape for name, part in state.entries.items()} for state in (self, previous)]
        return (self.seeds, self.rows_from) == (previous.seeds, previous.rows_from) and shapes[0] == shapes[1]

    def write(self, path: Path, *, previous: PublishedState | None = None) -> None:
        """Write the whole state, or its difference to `previous` (which it `follows`), as a record file."""
        if previous is not None and not self.follows(previous):
            raise ExactnessError("a difference needs the same subspaces and shapes on both sides", place=path.name)
        header = {
            "format": PUBLISHED_FORMAT,
            "version": self.version,
            "seeds": list(self.seeds),
            "rank": self.rank,
            "base_version": None if previous is None else previous.version,
        }
        if self.stacked:
            header["stacked"] = self.stacked
        if self.rows_from != "signs":
            header["rows_from"] = self.rows_from
        write_records(path, header, self._records(previous))

    def _records(self, previous: PublishedState | None) -> Iterator[Record]:
        for name in sorted(self.entries):
            part = self.entries[name]
            if not part.q.size:
                continue
            if previous is None:
                yield Record(name, part, 16)
            else:
                # Modulo 2**16: what overflows here overflows back on the other side.
                q = part.q - _coarser(previous.entries[name], part.exponent)
                yield Record(name, RowScaled(q, part.exponent), 16, difference=True)

    @classmethod
    def read(
        cls, path: Path, shapes: Mapping[str, tuple[int, int]], *, previous: PublishedState | None = None
    ) -> PublishedState:
        """Read what `write` wrote, against the shapes the plan promises.

        Args:
            path: A file with the whole state or a difference.
            shapes: (m, c) by name; where one is 0 the file says how many.
            previous: The state this node holds; needed when the file is a difference.

        Raises:
            MalformedMessage: Damaged, or other entries than the plan's.
            ExactnessError: A difference to a version that this node does not hold.
        """
        header = _checked_header(read_header(path, PUBLISHED_FORMAT), path.name)
        version, base, subspaces = header.version, header.base_version, (header.seeds, header.rank, header.rows_from)
        shapes = {name: (m or header.stacked, c or header.stacked) for name, (m, c) in shapes.items()}
        if base is not None and (previous is None or (previous.version, *previous.subspaces) != (base, *subspaces)):
            held = "none" if previous is None else previous.version
            raise ExactnessError(f"a difference to version {base}, this node holds {held}", place=path.name)
        entries: dict[str, RowScaled] = {}
        for record in read_records(path, largest=max((m * c for m, c in shapes.values()), default=0)):
            if record.name in entries or record.integers.q.shape != shapes.get(record.name):
                raise MalformedMessage("an entry that the plan does not have", place=f"{path.name}: {record.name}")
            if record.difference != (base is not None):
                raise MalformedMessage("whole and difference entries mixed", place=path.name)
            part = record.integers
            if record.difference and previous is not None:
                held_part = previous.entries.get(record.name)
                if held_part is None or held_part.q.shape != part.q.shape:
                    raise MalformedMessage(
                        "a difference to an entry of another shape", place=f"{path.name}: {record.name}"
                    )
                part = RowScaled(_coarser(held_part, part.exponent) + part.q, part.exponent)
            entries[record.name] = part
        entries |= {name: _zero_rows(shape) for name, shape in shapes.items() if not math.prod(shape)}
        if entries.keys() != shapes.keys():
            missing = sorted(shapes.keys() - entries.keys())
            raise MalformedMessage(f"{len(missing)} entries are missing, first {missing[0]}", place=path.name)
        return cls(version, header.seeds, header.rank, entries, header.rows_from)


@dataclass
class ExactState:
    """The coordinator's side: S in units of 2**-32, and the published scales, which never shrink.

    Attributes:
        version: The last round added.
        sums: By name int64 (m, c).
        exponents: By name int64 (m,).
        velocity: By name int64 (m, c), where the server has momentum: what it adds to S times its step. Never
            published.
        tables: Of the method's own, float64 by name, kept with the state and never published. A method that fills them
            computes elementwise and in one order, so that they are the same on every machine.
        rows_from: What rows of P come from.
        window: Of the last states that have a mean (`fedcore.model.averaging`) the sum so far, as `sums`; empty outside
            of them. Never published.
        windowed: How many these are.
        bits: Of a published number, 8 to 16: the row's largest takes them all (second moments: 16). Fewer make
            published states smaller, and S stays what it is.
    """

    version: int
    seeds: tuple[int, ...]
    rank: int
    sums: dict[str, NDArray[np.int64]]
    exponents: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    velocity: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    rows_from: str = "signs"
    bits: int = 16
    tables: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    window: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    windowed: int = 0

    @classmethod
    def zero(cls, training: Training, schema: ModelSchema) -> ExactState:
        """The state of a run in which nothing is learned yet."""
        sums = {name: np.zeros(shape, np.int64) for name, shape in training.shapes(schema).items()}
        return cls(0, training.seeds, training.rank, sums, rows_from=training.rows_from, bits=training.published_bits)

    def after(
        self, total: Means, *, step: float = 1.0, momentum: float = 0.0, plain: Container[str] = ()
    ) -> ExactState:
        """The next version: V becomes the round's mean (or what stands for it) plus momentum times V, and S grows by
        step times V.

        Without momentum and at a step of one that is S plus the mean. A new object, so that a failed round leaves
        nothing behind. All numbers stay integers: a mean is at most 2**39, so V is below 2**44 with momentum up to
        0.95, and its product with a step up to 4 below 2**62. Entries in `plain` take the mean as it is."""
        sums, velocity = {}, {}
        for name, mean in total.means():
            if name in plain:
                sums[name] = self.sums[name] + mean
                continue
            if momentum:
                if name in self.velocity:
                    mean = mean + scaled_fixed(self.velocity[name], momentum)
                velocity[name] = mean
            sums[name] = self.sums[name] + (mean if step == 1.0 else scaled_fixed(mean, step))
        return replace(self, version=self.version + 1, sums=sums, exponents=dict(self.exponents), velocity=velocity)

    def refreshed(self, training: Training, schema: ModelSchema) -> ExactState:
        """After a merge: what was merged is zero under new seeds, the rest kept."""
        merged = merged_entries(schema)
        zero = {
            name: np.zeros(shape, np.int64) for name, shape in training.layer_shapes(schema).items() if name in merged
        }
        exponents, velocity = (
            {n: v for n, v in table.items() if n not in zero} for table in (self.exponents, self.velocity)
        )
        return replace(
            self,
            seeds=training.seeds,
            rank=training.rank,
            sums={**self.sums, **zero},
            exponents=exponents,
            velocity=velocity,
            rows_from=training.rows_from,
        )

    def publish(self) -> PublishedState:
        """Round S once, half to even, to so many bits a number; raises the row scales where S outgrew them."""
        entries = {}
        for name, total in self.sums.items():
            # Adam divides by roots of second moments: none of them may be rounded to zero for a larger one's sake.
            largest = 2 ** ((16 if name.endswith(SECOND) else self.bits) - 1) - 1
            # int64 -> float64 may round S by 2**-53 of itself: harmless for a bound that leaves the exponent one step
            # of room.
            absmax = np.abs(total).max(axis=1, initial=0).astype(np.float64) * 2.0**-FRACTION_BITS
            needed = np.maximum(row_exponents(absmax, largest), _FINEST_EXPONENT)
            exponent = np.maximum(needed, self.exponents.get(name, needed))
            q = _shift_half_even(total, exponent + FRACTION_BITS)
            over = (np.abs(q) > largest).any(axis=1)
            if over.any():
                exponent = exponent + over
                q = _shift_half_even(total, exponent + FRACTION_BITS)
            self.exponents[name] = exponent
            entries[name] = RowScaled(q.astype(np.int16), exponent.astype(np.int8))
        return PublishedState(self.version, self.seeds, self.rank, entries, self.rows_from)


def model_digest(base_digest: str, state: PublishedState) -> str:
    """One hash over the base and the published state: equal digests mean equal models, bit for bit."""
    return hashlib.sha256(f"fedkrso model 1/{base_digest}/{state.digest()}".encode()).hexdigest()


def _zero_rows(shape: tuple[int, int]) -> RowScaled:
    return RowScaled(np.zeros(shape, np.int16), np.full(shape[0], _FINEST_EXPONENT, np.int8))


def _shift_half_even(total: NDArray[np.int64], bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """total / 2**bits per row, half to even, in integers only. `bits` (m,) is 0 or more."""
    shift = bits[:, None]
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), np.int64(0))
    floor = total >> shift
    rest = total - (floor << shift)
    up = (rest > half) | ((rest == half) & (shift > 0) & (floor & 1 == 1))
    return np.asarray(floor + up, np.int64)


def _coarser(part: RowScaled, exponent: NDArray[np.int8]) -> NDArray[np.int16]:
    """A published entry's integers at a later version's scales (which only double)."""
    bits = exponent.astype(np.int64) - part.exponent.astype(np.int64)
    if (bits < 0).any() or (bits > 62).any():
        raise MalformedMessage("a scale shrank between versions")
    return _shift_half_even(part.q.astype(np.int64), bits).astype(np.int16)


def _checked_header(raw: dict[str, Any], place: str) -> _Header:
    try:
        return msgspec.convert(raw, _Header)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"a published state's header: {error}", place=place) from None
