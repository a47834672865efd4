# SPDX-License-Identifier: Apache-2.0
"""Answers to held-out examples, for metrics that compare texts: the likeliest tokens, in batches that fit the memory
there is.

Said and right answers become texts by the same decoder, without special tokens, so that neither gains by how a
tokenizer writes blanks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from edge_client.worker.data.tasks import Encoded, Question, worker_task
from edge_client.worker.generate.batch import Batches
from edge_client.worker.generate.generator import Generator, positions_of
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.train.highwater import is_out_of_memory
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import TaskSection
from fedcore.errors import DataError

__all__ = ["MOST_AT_ONCE", "PASS_TOKENS", "Asked", "Texts", "answered", "questions_of"]

PASS_TOKENS: Final = 256
"""Of all prompts side by side, tokens that go through the model at a time: what a memory plan foresees."""
MOST_AT_ONCE: Final = 32
"""Answers side by side: beyond that a pass takes as much longer as it has more of them."""

Texts = tuple[list[str], list[str]]
"""Answers, and what is right."""


@dataclass(frozen=True)
class Asked:
    """What is to be answered.

    Attributes:
        questions: One of each example.
        tokenizer: The model's; None where nothing is asked.
        max_new_tokens: Of an answer.
    """

    questions: Sequence[Question] = ()
    tokenizer: Any = None
    max_new_tokens: int = 1

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt; 0 where nothing is asked."""
        return max((len(question.prompt) for question in self.questions), default=0)


def questions_of(examples: Iterable[Encoded], task: TaskSection, tokenizer: Any, max_new_tokens: int) -> Asked:
    """One question of each example.

    Args:
        examples: The first piece of each.
        task: Of the plan.
        tokenizer: The model's.
        max_new_tokens: Of an answer.

    Raises:
        DataError: The task's models write no answers.
    """
    at_work = worker_task(task)
    found = [at_work.question(encoded) for encoded in examples]
    if None in found:
        raise DataError(
            f"a metric compares texts, and a model for {task.kind} writes none",
            place="evaluation.metrics",
            remedy="leave it out",
        )
    return Asked([question for question in found if question is not None], tokenizer, max_new_tokens)


def answered(
    model: BuiltModel,
    asked: Asked,
    *,
    at_once: int = MOST_AT_ONCE,
    compiled: bool = True,
    wanted: Callable[[], object] = lambda: None,
) -> Texts:
    """What a model answers, and what is right, in the order of the questions.

    An allocation that fails is tried again with half as many answers side by side.

    Args:
        model: With the state that is measured.
        asked: The questions.
        at_once: Answers side by side at most.
        compiled: Use products that are compiled on this machine. A compiler takes memory of its own.
        wanted: Called before each pass; it raises where nobody waits any more.
    """
    prompts, tokenizer = [question.prompt for question in asked.questions], asked.tokenizer
    options = GenerationOptions(max_new_tokens=asked.max_new_tokens)
    said, at_once = None, min(at_once, MOST_AT_ONCE)
    generator = Generator(model, tokenizer, positions_of(model.module.config), compiled=compiled)
    # A template may end its turns with another token than the tokenizer has for the end of a text.
    generator.writer.end_tokens |= {one.answer[-1] for one in asked.questions} & set(tokenizer.all_special_ids)
    while said is None:
        try:
            said = generator.batch(prompts, options, Batches(at_once, PASS_TOKENS, wanted))
        except (MemoryError, RuntimeError) as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
        if said is None:
            # Outside of the handler: its traceback kept the failed pass' tensors alive.
            at_once //= 2
            _give_back()
    right = [one.answer if one.whole else one.answer[: asked.max_new_tokens] for one in asked.questions]
    return [_text(tokenizer, ids) for ids in said], [_text(tokenizer, ids) for ids in right]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
