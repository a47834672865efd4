# SPDX-License-Identifier: Apache-2.0
"""Several short examples in one row, kept apart: rows are then filled with tokens instead of padding.

Transformers keeps examples apart by positions that begin anew in each, where an architecture goes by positions; that it
does is measured on the model itself before anything is trained."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch

from edge_client.worker.data.batches import Encoded, inputs_of
from edge_client.worker.model.built import BuiltModel
from fedcore.errors import ModelError

__all__ = ["check_apart", "packed"]

_PROBE_TOKENS = (7, 9, 5)


def packed(encoded: Sequence[Encoded], most: int) -> list[Encoded]:
    """Rows of at most `most` tokens, each of one or more examples: the longest first, each into the row that it fills
    best.

    Example:
        >>> some = [Encoded(ids, None, None) for ids in ((1, 2), (3, 4, 5), (6, 7))]
        >>> [(row.ids, row.segments, row.spans) for row in packed(some, 5)]
        [((3, 4, 5, 1, 2), (3, 2), ((1, 3), (4, 5))), ((6, 7), (), ((1, 2),))]
    """
    rows: list[list[Encoded]] = []
    rooms: list[tuple[int, int]] = []  # what each row still takes, and its number; sorted
    for one in sorted(encoded, key=lambda example: -len(example.ids)):
        place = bisect.bisect_left(rooms, (len(one.ids), -1))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = most, len(rows)
            rows.append([])
        rows[number].append(one)
        bisect.insort(rooms, (room - len(one.ids), number))
    return [_joined(row) for row in rows]


def _joined(row: Sequence[Encoded]) -> Encoded:
    if len(row) == 1:
        return row[0]
    ids: list[int] = []
    learned = []
    for one in row:
        learned += [(start + len(ids), stop + len(ids)) for start, stop in one.spans]
        ids += one.ids
    return Encoded(tuple(ids), None, None, learned=tuple(learned), segments=tuple(len(one.ids) for one in row))


@torch.inference_mode()
def check_apart(model: BuiltModel, torch_device: torch.device) -> None:
    """See whether a model says of examples in one row what it says of each alone.

    Raises:
        ModelError: It does not.
    """
    words = min(1000, int(getattr(model.module.config, "vocab_size", 1000)))
    alone = [
        Encoded(tuple((31 * (place + 17 * number) + 5) % words for place in range(tokens)), None, None)
        for number, tokens in enumerate(_PROBE_TOKENS)
    ]
    name = type(model.module).__name__
    remedy = "leave task.pack out"
    try:
        (row,) = model.backbone(**inputs_of(model, packed(alone, sum(_PROBE_TOKENS)), 0, torch_device))[0]
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{name} takes no positions, so that examples in one row would not be apart: {error}",
            place="task.pack",
            remedy=remedy,
        ) from None
    wanted = sorted(alone, key=lambda example: -len(example.ids))
    each = torch.cat([model.backbone(**inputs_of(model, [one], 0, torch_device))[0][0] for one in wanted])
    off = float((row - each).abs().max() / each.abs().max())
    exact = row.dtype == torch.float32 and all(layer.compute_dtype == torch.float32 for layer in model.layers.values())
    if not off < (1e-4 if exact else 3e-2):
        raise ModelError(
            f"{name} does not keep examples in one row apart: what it says of them differs by {off:.1g}",
            place="task.pack",
            remedy=remedy,
        )
