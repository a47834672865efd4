# SPDX-License-Identifier: Apache-2.0
"""What an assistant says in conversations: cross-entropy over the vocabulary, of its own tokens alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edge_client.worker.data.chat import render
from edge_client.worker.data.kinds.causal_lm import CausalLMAtWork
from edge_client.worker.data.packing import packed
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import Encoded, Shown
from fedcore.errors import DataError

__all__ = ["InstructionAtWork"]


class InstructionAtWork(CausalLMAtWork):
    """Losses and measures are those of causal-lm, over learned tokens."""

    def encode(self, example: Example, tokenizer: Any) -> Iterator[Encoded]:
        """A conversation as its template renders it; what is too long is refused, left out or cut as the job says."""
        section = self.section
        rendered = render(example, tokenizer, section.template_text, section.learn)
        ids, learned = rendered.ids, rendered.learned
        over = len(ids) - section.max_length
        if over > 0 and section.too_long == "refuse":
            raise DataError(
                f"{len(ids)} tokens, {over} more than task.max_length",
                place=example.place,
                remedy='raise task.max_length, or set task.too_long to "drop" or "cut"',
            )
        if over > 0 and section.too_long == "drop":
            return
        if over > 0:
            # The token that begins a text stays, whatever is cut behind it.
            kept = 1 if ids[0] == tokenizer.bos_token_id else 0
            ids = ids[:kept] + ids[kept + over :]
            moved = ((start - over, stop - over) for start, stop in learned)
            # A turn that is cut into is read, not learned.
            learned = tuple((start, stop) for start, stop in moved if start >= max(1, kept))
        if learned:
            yield Encoded(ids, None, None, learned=learned, cut=over > 0)

    def shown(self, example: Example, tokenizer: Any) -> Shown:
        """With the assistant's turns."""
        found = render(example, tokenizer, self.section.template_text, self.section.learn)
        return Shown(found.pieces, len(found.ids))

    def sample(self, ids: tuple[int, ...], types: tuple[int, ...] | None) -> Encoded:
        """All of it learned; where rows are packed, two examples in one."""
        most, half = len(ids), len(ids) // 2
        if not self.section.pack or not half:
            return super().sample(ids, types)
        return Encoded(ids, types, None, learned=((1, half), (half + 1, most)), segments=(half, most - half))

    def rows(self, encoded: Sequence[Encoded]) -> Sequence[Encoded]:
        """Several examples in one, where the job wants that."""
        return packed(encoded, self.section.max_length) if self.section.pack else encoded
