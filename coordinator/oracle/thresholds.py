# SPDX-License-Identifier: Apache-2.0
"""The thresholds of all clusters, learned federally: one row of a matrix with a column for each cluster, whose mean is,
column by column, over the devices that have it. As everything that is summed here, in exact integers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from fedcore.answers.threshold import THRESHOLD_BITS
from fedcore.errors import ConfigError
from fedcore.numbers.accumulator import RowScaled, RunningSum
from fedcore.system.durable import write_durably
from fedcore.wire.answers import MOST_CLUSTERS, Learned

__all__ = ["Kept", "mean_thresholds"]

_ENTRY = "/threshold"


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an oracle keeps on the disk.

    Attributes:
        starts: How often it was started: its messages are numbered on from there.
        round: The round of thresholds that is open.
        units: The thresholds that count in it, in units of 2**-32, one a cluster.
    """

    starts: int
    round: int
    units: tuple[int, ...]

    @classmethod
    def begin(cls, path: Path, clusters: int) -> Kept:
        """The next start: from the disk, or with thresholds of 0, at which everything is asked.

        Raises:
            ConfigError: The file is damaged, or there were other clusters.
        """
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            found = cls(0, 1, (0,) * clusters)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"cannot be read: {error}", place=str(path), remedy="remove it to begin anew") from None
        if len(found.units) != clusters or not 1 <= clusters <= MOST_CLUSTERS:
            remedy = f"--clusters {len(found.units)}, or remove the file"
            raise ConfigError(f"it has {len(found.units)} clusters, not {clusters}", place=str(path), remedy=remedy)
        next_start = msgspec.structs.replace(found, starts=found.starts + 1)
        next_start.write(path)
        return next_start

    def write(self, path: Path) -> None:
        """Keep it; returns when it is on the disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, msgspec.json.encode(self))


def mean_thresholds(units: tuple[int, ...], said: Mapping[str, Learned]) -> tuple[int, ...]:
    """The next thresholds: of each cluster the mean of its devices', weighted by the texts that each saw, rounded half
    to even; where no device of a cluster spoke, it keeps its own.

    Args:
        units: The present ones, in units of 2**-32.
        said: By device; each of a cluster that there is.

    Example:
        >>> said = {"a": Learned(1, 0, 8192, 1), "b": Learned(1, 0, 4096, 3), "c": Learned(1, 2, 16384, 5)}
        >>> [value / 2**32 for value in mean_thresholds((0, 2**30, 0), said)]
        [0.3125, 0.25, 1.0]
    """
    total = RunningSum({_ENTRY: (1, len(units))}, frozenset({_ENTRY}))
    spoke = set()
    for one in said.values():
        part = RowScaled(np.array([[one.units]], np.int16), np.array([-THRESHOLD_BITS], np.int8))
        total.add_examples(one.items)
        total.add(_ENTRY, part, one.items, slice(one.cluster, one.cluster + 1))
        spoke.add(one.cluster)
    ((_, mean),) = total.means()
    return tuple(int(mean[0, place]) if place in spoke else kept for place, kept in enumerate(units))
