# SPDX-License-Identifier: Apache-2.0
"""Room on the disk for what a node keeps: a round's update, its finished intervals, one fetched object.

A disk that is full is a state, not a crash: the node keeps what it has, declines work with the numbers, and goes on
when there is room."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from edge_client.node import Node
from fedcore.config.reading import parse_size
from fedcore.errors import StorageError
from fedcore.round.masked import lanes_bytes
from fedcore.round.plan import Plan

__all__ = ["Storage", "round_bytes"]

# Names, shapes and checksums around a record's or a tensor's numbers.
_RECORD_BYTES = 512


def round_bytes(plan: Plan) -> int:
    """The most that a round leaves on this node's disk: the update, what each finished interval learned, and what stays
    here, twice."""
    training, schema = plan.training, plan.model_schema
    layers = training.update_layer_shapes(schema)
    tensors = [tensor.matrix for tensor in training.sent_tensors(schema)]
    overhead = _RECORD_BYTES * (len(layers) + len(tensors))
    update = sum(training.coding(name).most_bytes(rows * columns) + rows for name, (rows, columns) in layers.items())
    update += sum(2 * math.prod(shape) for shape in tensors)
    if plan.secure is not None:
        # Its lanes, and the same masked.
        update += 2 * lanes_bytes(plan)
    local = 2 * 4 * training.local_numbers(schema)
    return update + local + overhead + training.intervals * (4 * training.interval_numbers(schema) + 3 * overhead)


class Storage:
    """What a node may take of its disk.

    Args:
        folder: The node's folder.
        limit_bytes: For updates, intervals and fetched objects together.
        reserve_bytes: What stays free on the disk whatever happens.
    """

    def __init__(self, folder: Path, limit_bytes: int, reserve_bytes: int) -> None:
        self._folder, self._limit_bytes, self._reserve_bytes = folder, limit_bytes, reserve_bytes

    @classmethod
    def of(cls, node: Node) -> Storage:
        """As a node file says."""
        limit, reserve = (parse_size(getattr(node, key), place=key) for key in ("disk_limit", "disk_reserve"))
        return cls(Path(node.folder), limit, reserve)

    def require(self, need_bytes: int, what: str) -> None:
        """Return if there is room.

        Raises:
            StorageError: There is not; the message has the numbers.
        """
        if need_bytes > self._limit_bytes:
            raise StorageError(
                f"{what} needs {need_bytes / 2**20:,.0f} MiB of disk, "
                f"more than the limit of {self._limit_bytes / 2**20:,.0f} MiB",
                place=str(self._folder),
                remedy="raise disk_limit",
            )
        free = shutil.disk_usage(self._folder).free
        if free - need_bytes < self._reserve_bytes:
            raise StorageError(
                f"the disk is full: {what} needs {need_bytes / 2**20:,.0f} MiB "
                f"beside a reserve of {self._reserve_bytes / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are free",
                place=str(self._folder),
                remedy="free space there",
            )
