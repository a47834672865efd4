# SPDX-License-Identifier: Apache-2.0
"""What a server's worker does with its commands: it holds one model, answers conversations token by token, and says
which labels texts have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edge_client.worker.answering.finished import Finished, finished
from edge_client.worker.answering.grammar import Grammars
from edge_client.worker.answering.mirror import mirrored, take
from edge_client.worker.answering.order import PropertyOrder
from edge_client.worker.data.chat import prompt_ids
from edge_client.worker.data.reading import Example, load_texts
from edge_client.worker.data.tasks import Encoded, encode, outputs
from edge_client.worker.generate.generator import Generator, positions_of
from edge_client.worker.model.built import BuiltModel
from edge_client.worker.trace.contexts import footprint_of
from edge_client.worker.train.highwater import peak_bytes, status_bytes
from edge_client.worker.train.replica import Replica
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import DataSection, TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import BudgetError, DataError, WorkerError
from fedcore.worker.serving import Classified, Classify, Generate, Generated, Held, Load, Loaded, ModelKind, Token

__all__ = ["Answering"]

_BATCH = 16
_MOST_ROWS = 2000
_LEAST_CONTEXT = 128
_LEAST_TOP_P = 1e-9


@dataclass
class _Model:
    """What is held now."""

    load: Load
    task: TaskSection
    built: BuiltModel
    tokenizer: Any
    replica: Replica | None
    generator: Generator | None = None
    grammars: Grammars | None = None
    order: PropertyOrder | None = None


class Answering:
    """Answers with one model at a time.

    Args:
        emit: Sends an event.
        tokenizer_of: Reads a model folder's.
    """

    def __init__(self, emit: Callable[[Token], None], tokenizer_of: Callable[[Path], Any]) -> None:
        self._emit, self._tokenizer_of = emit, tokenizer_of
        self._model: _Model | None = None
        self._unwanted = 0

    def stop(self, answer: int) -> None:
        """From the thread that reads commands: nobody waits for this answer any more."""
        self._unwanted = max(self._unwanted, answer)

    def load(self, command: Load) -> Loaded:
        """Hold a model; a newer state on the base that is held already takes no time to speak of.

        Raises:
            FedkrsoError: It cannot be held; ExactnessError where what lies on the disk is being changed.
        """
        torch.set_num_threads(command.threads)
        held, model = command.held, self._model
        if model is not None and held is not None and self._same_base(model, held) and model.replica is not None:
            # Whatever comes of it, what was held until now is no more.
            self._model = None
            if take(model.replica, command, held):
                model.load = command
                if model.generator is not None:
                    model.generator.refresh()
                self._model = model
                return self._loaded(model)
        self._model = None
        self._model = self._made(command)
        return self._loaded(self._model)

    def generate(self, command: Generate, ending: Callable[[], None]) -> Generated:
        """Answer a conversation.

        Args:
            command: What is asked.
            ending: Called between two tokens; it may raise.

        Raises:
            DataError: The request cannot be answered: too long, the template fails, the schema is refused.
        """
        model = self._held
        if model.generator is None:
            raise DataError("this model says labels, not sentences", place="model", remedy="ask /v1/classify")
        generator, messages = model.generator, [{"role": m.role, "content": m.content} for m in command.messages]
        prompt = prompt_ids(messages, model.tokenizer, model.task.template_text)
        left = generator.context_tokens - len(prompt)
        if (command.max_tokens or 1) > left:
            raise DataError(
                f"the conversation has {len(prompt):,} tokens"
                + (f" and the answer may have {command.max_tokens:,}" if command.max_tokens else "")
                + f", the context holds {generator.context_tokens:,} together",
                place="messages",
                remedy="shorten it, or lower max_tokens",
            )
        constraint = self._grammars(model).constraint(self._ordered(model, command)) if command.json_schema else None
        options = GenerationOptions(
            max_new_tokens=min(command.max_tokens or model.load.max_tokens, left),
            temperature=command.temperature,
            top_p=max(command.top_p, _LEAST_TOP_P),
            top_k=command.top_k,
            seed=command.seed,
            stop=command.stop,
        )
        said, finish = 0, "stop"
        for token in self._wanted(command.answer, generator.stream(prompt, options, constraint), ending):
            said, finish = said + 1, token.finish or finish
            if token.text:
                self._emit(Token(command.answer, token.text))
        return Generated(
            answer=command.answer,
            finish_reason="length" if finish == "length" else "stop",
            prompt_tokens=len(prompt),
            completion_tokens=said,
            stopped=command.answer <= self._unwanted,
        )

    def classify(self, command: Classify) -> Classified:
        """Say which labels texts have, or their scores.

        Raises:
            DataError: The model is one that writes; or pairs where it takes single texts, and the other way round.
        """
        model, task = self._held, self._held.task
        if model.generator is not None:
            raise DataError(
                "this model writes sentences, it has no labels", place="model", remedy="ask /v1/chat/completions"
            )
        paired = task_of(task).pair
        for index, (_, second) in enumerate(command.texts):
            if paired and second is None:
                raise DataError("this model reads pairs of texts", place=f"input[{index}]")
        encoded = encode([Example(text, pair, None) for text, pair in command.texts], task, model.tokenizer)
        return Classified(tuple(self._scores(model, encoded)), self._truncated(model, command))

    @property
    def _held(self) -> _Model:
        if self._model is None:
            raise WorkerError("no model is loaded yet")
        return self._model

    def _made(self, command: Load) -> _Model:
        folder, held = Path(command.model_folder), command.held
        tokenizer = self._tokenizer_of(folder)
        if held is None:
            found: Finished = finished(folder, Path(command.scratch), tokenizer)
            model = _Model(command, found.task, found.model, tokenizer, None)
        else:
            replica = mirrored(command, held, getattr(torch, command.compute_dtype))
            model = _Model(command, held.plan.task, replica.model, tokenizer, replica)
        if task_of(model.task).outputs() is None:
            model.generator = Generator(model.built, tokenizer, _context(model.built, command))
        return model

    def _loaded(self, model: _Model) -> Loaded:
        kind: ModelKind = "chat"
        if model.generator is None:
            kind = "regression" if task_of(model.task).scale else "classification"
        context = model.generator.context_tokens if model.generator is not None else model.task.max_length
        labels = tuple(model.task.labels) if kind == "classification" else ()
        return Loaded(kind=kind, context_tokens=context, labels=labels, peak_bytes=peak_bytes())

    @staticmethod
    def _same_base(model: _Model, held: Held) -> bool:
        return model.load.held is not None and model.load.held.run == held.run

    def _wanted(self, answer: int, tokens: Iterator[Any], ending: Callable[[], None]) -> Iterator[Any]:
        """The tokens, until nobody wants them."""
        for token in tokens:
            yield token
            ending()
            if answer <= self._unwanted:
                return

    def _grammars(self, model: _Model) -> Grammars:
        if model.grammars is None:
            assert model.generator is not None
            model.grammars = Grammars(model.tokenizer, model.generator.end_tokens)
        return model.grammars

    def _ordered(self, model: _Model, command: Generate) -> str:
        if model.order is None:
            model.order = PropertyOrder(_answers(model.load.data, model.task))
        return model.order.applied(command.json_schema)

    def _scores(self, model: _Model, encoded: list[Encoded]) -> Iterator[tuple[float, ...]]:
        module, scale = model.built.module, task_of(model.task).scale
        module.eval()
        device = next(module.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(encoded), _BATCH):
                said = outputs(model.built, encoded[start : start + _BATCH], model.built.pad_id, device).float()
                yield from map(tuple, (said if scale else said.softmax(-1)).tolist())

    def _truncated(self, model: _Model, command: Classify) -> tuple[int, ...]:
        most = model.task.max_length
        lengths = (len(model.tokenizer(text, pair)["input_ids"]) for text, pair in command.texts)
        return tuple(index for index, length in enumerate(lengths) if length > most)


def _context(built: BuiltModel, command: Load) -> int | None:
    """Tokens of question and answer together: the model's, the owner's, or those for which there is memory beside the
    model.

    Raises:
        BudgetError: Next to none fit.
    """
    positions = positions_of(built.module.config)
    most = min(positions, command.max_context or positions)
    used = status_bytes("VmRSS")
    if not command.room_bytes or used is None:
        return most
    fits = footprint_of(built, used, command.room_bytes, most).fitting(command.room_bytes, most)
    if fits < min(most, _LEAST_CONTEXT):
        raise BudgetError(
            f"the model takes {used / 2**20:,.0f} MiB of {command.room_bytes / 2**20:,.0f} MiB,"
            f" which leaves room for a context of {fits} tokens",
            place="memory_budget",
            remedy="raise it",
        )
    return fits


def _answers(data: DataSection | None, task: TaskSection) -> Iterator[str]:
    """What the assistant says in a node's own rows, in some of them where there are many."""
    if data is None or not task_of(task).conversations:
        return
    for example in load_texts(data, _MOST_ROWS, task):
        for message in example.messages:
            if message.get("role") == "assistant" and isinstance(message.get("content"), str):
                yield message["content"]
