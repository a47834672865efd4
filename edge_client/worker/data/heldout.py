# SPDX-License-Identifier: Apache-2.0
"""Which of a node's rows are held out: never trained on, and measured instead.

A row's place is SHA-256 over a seed and what is learned of the row, as a number from 0 to 1. Rows whose place is below
the share are held out. So a row stays on its side however the file grows, shrinks or is sorted, in this run and in
every other with the same seed; and a row that is there twice is on one side with its twin."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from edge_client.worker.data.reading import Example, load_examples
from fedcore.config.sections import DataSection, TaskSection
from fedcore.round.measurement import NodeEvaluation

__all__ = ["node_examples", "place_of", "sampled"]


def node_examples(
    data: DataSection, task: TaskSection, evaluation: NodeEvaluation | None
) -> tuple[list[Example], list[Example]]:
    """A node's rows to train on, and those to measure on.

    Where the share would leave nothing to train on, nothing is held out.

    Args:
        data: The node's.
        task: Of the plan.
        evaluation: Of the plan; None: nothing is held out.

    Raises:
        DataError: A source cannot be read.
    """
    examples = load_examples(data, task)
    if evaluation is None:
        return examples, []
    if data.held_out is not None:
        return examples, load_examples(msgspec.structs.replace(data, source=data.held_out, held_out=None), task)
    places = [place_of(example, evaluation.share_seed) < evaluation.share for example in examples]
    if all(places):
        return examples, []
    return (
        [example for example, out in zip(examples, places, strict=True) if not out],
        [example for example, out in zip(examples, places, strict=True) if out],
    )


def place_of(example: Example, seed: int) -> float:
    """A row's place from 0 to 1, which depends on nothing but the row and the seed.

    Example:
        >>> round(place_of(Example("lamp on", None, 0), seed=0), 3)
        0.605
    """
    said = (example.text, example.text_pair, example.target, *([example.messages] if example.messages else ()))
    words = msgspec.msgpack.encode(("fedkrso held-out 1", seed, *said), order="sorted")
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "little") / 2**64


def sampled(examples: Sequence[Example], rows: int, seed: int) -> list[Example]:
    """At most so many rows, in their order: those with the lowest places, so that a smaller sample is part of a larger
    one.

    Args:
        examples: Held-out rows.
        rows: How many; 0 for all.
        seed: Of the places.
    """
    if not 0 < rows < len(examples):
        return list(examples)
    order = sorted(range(len(examples)), key=lambda index: (place_of(examples[index], seed), index))
    return [examples[index] for index in sorted(order[:rows])]
