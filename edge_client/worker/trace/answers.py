# SPDX-License-Identifier: Apache-2.0
"""What answers keep in memory while a published state is measured by them, found like a training step's: the real
passes on tensors that are only shapes."""

from __future__ import annotations

from edge_client.worker.generate.generator import positions_of
from edge_client.worker.model.built import CANNOT_RUN, BuiltModel
from edge_client.worker.trace.passes import pass_bytes
from edge_client.worker.trace.shapes import Shapes
from edge_client.worker.train.answered import PASS_TOKENS
from fedcore.device.memoryplan import Answering
from fedcore.errors import ModelError

__all__ = ["sketch_answers"]


def sketch_answers(model: BuiltModel, shapes: Shapes, prompt_tokens: int, max_new_tokens: int) -> Answering:
    """Bytes beyond what is always there, of answers side by side.

    Every pass is taken to be as large as the largest, over a cache that is full: no pass of `greedy_answers` keeps
    more.

    Args:
        model: Fake.
        shapes: Of its tensors.
        prompt_tokens: Of the longest prompt.
        max_new_tokens: Of an answer.

    Raises:
        ModelError: The model cannot be run with a cache.
    """
    context = min(prompt_tokens + max_new_tokens, positions_of(model.module.config))
    try:
        widths = {rows: min(prompt_tokens, PASS_TOKENS // rows) for rows in (1, 2)}
        one, two = (pass_bytes(model, shapes, context, width, rows=rows, padded=True) for rows, width in widths.items())
    except CANNOT_RUN as error:
        raise ModelError(
            f"{type(model.module).__name__} cannot answer with a cache: {next(iter(str(error).splitlines()), '')}",
            place="evaluation.metrics",
            remedy="leave out metrics that compare texts",
        ) from None
    row = max(0, two - one)
    return Answering(fixed_bytes=max(0, one - row), row_bytes=row)
