# SPDX-License-Identifier: Apache-2.0
"""Updates as the integers that secure aggregation sums: made on the node from an ordinary update, and at the
coordinator taken from the sum of all of them.

A lane holds one number of the state times the node's weight, in units of 2**-fraction_bits, as a little-endian integer
modulo 2**(8 * lane_bytes). All entries follow each other, in the order of the plan's shapes, row by row; what an update
does not say of an entry is zero. Behind them stand the weight and the loss. With 32 fraction bits these are the very
integers that an exact sum adds (`fedcore.numbers.accumulator`), and so is their sum.

Where a run promises to hide nodes, each weighs one and adds its part of the noise to all lanes but the weight
(`fedcore.privacy.shares`): to those of columns that it has not trained too, since others may have. The loss would tell
of the texts as much as anything else: it is a part of the vector that is clipped."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcore.errors import SecureError, UpdateRefused
from fedcore.model.update import IndexedUpdate, WeightedUpdate, check_update
from fedcore.numbers.accumulator import clip_within
from fedcore.numbers.fixed import blocks, mean_fixed
from fedcore.privacy.gaussian import KEY_BYTES, discrete_gaussian
from fedcore.privacy.shares import share_sigma, spread
from fedcore.round.masked import masked_start
from fedcore.round.plan import Plan
from fedcore.round.secure import EXTRA_LANES, FRACTION_BITS
from fedcore.secure.masks import CHUNK_BYTES, key_stream

__all__ = ["Unmasked", "from_lanes", "sum_of_masked", "to_lanes", "write_lanes"]

_LOSS_UNIT: Final = 2.0**-10
_LARGEST_LOSS: Final = 2**10
_MOST: Final = np.int64(1) << np.int64(39)
"""Of a mean, as of exact sums."""
_LEAST_NODES: Final = 3
_LOSS_SHARE, _UPDATE_SHARE = 0.1, 0.994
"""Of the clip, where there is noise: the squares of both are no more than one."""
_LARGEST_HIDDEN_LOSS: Final = 4.0
"""What is larger counts as this where it is hidden."""


class _Noise(NamedTuple):
    """Of a plan that has nodes add some.

    Attributes:
        clip: Largest norm of an update and its loss together.
        sigma: Of each lane of a node.
        loss_units: What a loss of 4 comes to.
    """

    clip: float
    sigma: int
    loss_units: int


def _noise_of(plan: Plan) -> _Noise | None:
    privacy, secure = plan.training.privacy, plan.secure
    if privacy is None or privacy.level != "node" or secure is None:
        return None
    if secure.least < _LEAST_NODES:
        raise SecureError(
            f"a plan that promises noise, and does not say of how many nodes: {secure.least}", place="secure.least"
        )
    sigma = share_sigma(privacy.noise_multiplier, privacy.clip, secure.least, secure.fraction_bits)
    return _Noise(privacy.clip, sigma, int(_LOSS_SHARE * privacy.clip * 2.0**secure.fraction_bits))


def _drawn(noise: _Noise | None, key: bytes, what: str, shape: tuple[int, ...]) -> NDArray[np.int64] | int:
    """Of a stretch of lanes, each stretch from a stream of its own."""
    if noise is None:
        return 0
    stream = hashlib.shake_128(key + f"fedkrso share 1/{what}".encode()).digest(KEY_BYTES)
    return discrete_gaussian(noise.sigma, math.prod(shape), stream).reshape(shape)


def to_lanes(values: NDArray[np.int64], lane_bytes: int) -> bytes:
    """Integers as lanes.

    Example:
        >>> to_lanes(np.array([1, -1]), 4).hex()
        '01000000ffffffff'
    """
    whole = np.ascontiguousarray(values, "<i8").reshape(-1).view(np.uint8).reshape(-1, 8)
    return whole[:, :lane_bytes].tobytes()


def from_lanes(chunk: bytes, lane_bytes: int) -> NDArray[np.uint64]:
    """Lanes as integers without a sign.

    Example:
        >>> from_lanes(bytes.fromhex("01000000ffffffff"), 4).tolist()
        [1, 4294967295]
    """
    whole = np.zeros((len(chunk) // lane_bytes, 8), np.uint8)
    whole[:, :lane_bytes] = np.frombuffer(chunk, np.uint8).reshape(-1, lane_bytes)
    return whole.view("<u8").reshape(-1)


def write_lanes(update: Path, plan: Plan, run: str, node: str, lanes: Path, *, key: bytes = b"") -> None:
    """Make an update that lies on the disk into lanes, scaled down to the plan's bound and times the node's weight.

    In memory is one record at a time.

    Args:
        update: As the node would send it without secure aggregation.
        plan: The round's.
        run: Name of the run.
        node: Whose it is.
        lanes: Where the lanes go; there whole or not at all.
        key: 32 bytes that decide the noise, where the plan asks for some; by default of the system's generator.

    Raises:
        UpdateRefused: The update is not what the plan asks for.
        SecureError: The plan's lanes have no room for the sum.
    """
    secure = plan.secure
    assert secure is not None
    noise, key = _noise_of(plan), key or secrets.token_bytes(KEY_BYTES)
    uniform = plan.training.share == "uniform" or noise is not None
    room = 0 if noise is None else spread(noise.sigma, len(plan.cohort))
    secure.require_room(len(plan.cohort), uniform=uniform, noise=room)
    checked = check_update(update, plan, run, node)
    bound = secure.norm_bound if noise is None else _UPDATE_SHARE * noise.clip
    clip = clip_within(checked.squared, bound) if bound else None
    weight = 1 if uniform else min(checked.header.examples, secure.most_examples)
    indexed = IndexedUpdate(WeightedUpdate(update, checked.header, weight, clip), plan)
    part = lanes.with_name(lanes.name + ".part")
    with part.open("wb") as file:
        for name, shape in plan.training.update_shapes(plan.model_schema).items():
            units = _units(indexed, name, shape, FRACTION_BITS - secure.fraction_bits, within=noise is not None)
            for number, block in enumerate(units):
                lane = block * np.int64(weight) + _drawn(noise, key, f"{number}/{name}", block.shape)
                file.write(to_lanes(lane, secure.lane_bytes))
        loss = round(min(max(checked.header.loss, 0.0), _LARGEST_LOSS) / _LOSS_UNIT)
        if noise is not None:
            hidden = min(max(checked.header.loss, 0.0), _LARGEST_HIDDEN_LOSS) / _LARGEST_HIDDEN_LOSS
            loss = int(hidden * noise.loss_units) + int(np.sum(_drawn(noise, key, "loss", (1,))))
        file.write(to_lanes(np.array([weight, loss], np.int64), secure.lane_bytes))
    part.replace(lanes)


def _units(
    update: IndexedUpdate, name: str, shape: tuple[int, int], dropped: int, *, within: bool
) -> Iterator[NDArray[np.int64]]:
    """An entry's numbers, block by block, without their last bits: rounded half to even, or towards zero where no norm
    may grow."""
    record, columns = update.record(name) if name in update else (None, slice(None))
    for rows in blocks(shape) if math.prod(shape) else ():
        block = np.zeros((rows.stop - rows.start, shape[1]), np.int64)
        if record is not None:
            units = record.part.units(rows)
            block[:, columns] = units if update.clip is None else update.clip.of(units)
        if not dropped:
            yield block
        elif within:
            yield np.sign(block) * (np.abs(block) >> np.int64(dropped))
        else:
            yield mean_fixed(block, 1 << dropped)


class Unmasked:
    """What a round's updates come to, of which each stayed hidden.

    Args:
        numbers: All lanes of the sum, with their sign.
        plan: The round's.
        nodes: How many participants there are.

    Attributes:
        numbers: As given.
        nodes: As given.
        weight: Of all participants together.
        loss: The sum of their losses.
        noise: The standard deviation of the noise that they have added, on a number of the mean; 0 for none.
    """

    def __init__(self, numbers: NDArray[np.int64], plan: Plan, nodes: int) -> None:
        assert plan.secure is not None
        self.numbers, self.nodes, self._shapes = numbers, nodes, plan.training.update_shapes(plan.model_schema)
        self._dropped = FRACTION_BITS - plan.secure.fraction_bits
        self.weight, loss = (int(number) for number in numbers[-EXTRA_LANES:])
        noise = _noise_of(plan)
        self.loss, self.noise = loss * _LOSS_UNIT, 0.0
        if noise is not None:
            self.noise = math.ldexp(noise.sigma * math.sqrt(nodes), -plan.secure.fraction_bits) / max(1, self.weight)
            self.loss = max(0.0, loss * _LARGEST_HIDDEN_LOSS / max(1, noise.loss_units))

    @classmethod
    def nothing(cls, plan: Plan) -> Unmasked:
        """A round that came to nothing: the state stays as it was."""
        count = sum(math.prod(shape) for shape in plan.training.update_shapes(plan.model_schema).values())
        return cls(np.zeros(count + EXTRA_LANES, np.int64), plan, 0)

    def __iter__(self) -> Iterator[WeightedUpdate]:
        """No update of anybody's: where a method's `aggregate` takes updates, this stands for all of them."""
        return iter(())

    def means(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each entry's weighted mean in units of 2**-32, as `RunningSum.means`."""
        start = 0
        for name, shape in self._shapes.items():
            total = self.numbers[start : start + math.prod(shape)].reshape(shape) << np.int64(self._dropped)
            start += math.prod(shape)
            # Noise may be larger than what a state holds, and so may be what a node sends that lies.
            yield name, np.clip(mean_fixed(total, max(1, self.weight)), -_MOST, _MOST)


def sum_of_masked(paths: Sequence[Path], plan: Plan, masks: Sequence[tuple[int, bytes]]) -> Unmasked:
    """The sum of masked updates, without the masks that are left in it, chunk by chunk: in memory is one chunk, and the
    sum.

    Args:
        paths: Files of those whose updates count, in any order.
        plan: The round's.
        masks: What is left in the sum, sign and seed of each.

    Raises:
        UpdateRefused: What comes out is no sum of updates: a node has not masked as it said.
    """
    assert plan.secure is not None
    lane_bytes, shapes = plan.secure.lane_bytes, plan.training.update_shapes(plan.model_schema)
    count = sum(math.prod(shape) for shape in shapes.values()) + EXTRA_LANES
    total, per_chunk = np.zeros(count, np.uint64), CHUNK_BYTES // lane_bytes
    for path in paths:
        with path.open("rb") as file:
            masked_start(file)
            for start in range(0, count, per_chunk):
                total[start : start + per_chunk] += from_lanes(file.read(CHUNK_BYTES), lane_bytes)
    for number, start in enumerate(range(0, count, per_chunk)):
        some = total[start : start + per_chunk]
        for sign, seed in masks:
            stream = from_lanes(key_stream(seed, number, len(some) * lane_bytes), lane_bytes)
            np.subtract(some, stream, out=some) if sign > 0 else np.add(some, stream, out=some)
    found = _signed(total, lane_bytes)
    limit = len(paths) * plan.secure.most_examples
    if not len(paths) <= int(found[-EXTRA_LANES]) <= limit:
        raise UpdateRefused(
            f"the masks do not cancel: the weights come to {int(found[-EXTRA_LANES])} of {len(paths)} updates",
            remedy="a node has masked otherwise than it said",
        )
    return Unmasked(found, plan, len(paths))


def _signed(total: NDArray[np.uint64], lane_bytes: int) -> NDArray[np.int64]:
    """Modulo 2**(8 * lane_bytes), around zero."""
    left = 64 - 8 * lane_bytes
    signed: NDArray[np.int64] = (total << np.uint64(left)).view(np.int64)
    found: NDArray[np.int64] = signed >> np.int64(left)
    return found
