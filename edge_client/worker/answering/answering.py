# SPDX-License-Identifier: Apache-2.0
"""What a server's worker does with its commands: it holds one model, answers conversations token by token, and says
which labels texts have. Without torch where the model can do so (`light`), else with it (`full`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from edge_client.worker.answering.grammar import Grammars
from edge_client.worker.answering.light import light_model
from edge_client.worker.answering.order import PropertyOrder
from edge_client.worker.compiled.tokens import Constraint
from edge_client.worker.compiled.tokens import Token as Step
from edge_client.worker.data.chat import prompt_ids
from edge_client.worker.data.reading import load_texts
from edge_client.worker.train.highwater import peak_bytes
from fedcore.config.generation import GenerationOptions
from fedcore.config.sections import DataSection, TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import DataError, WorkerError
from fedcore.worker.serving import Classified, Classify, Generate, Generated, Held, Load, Loaded, ModelKind, Token

__all__ = ["Answering", "Model", "Writing"]

_MOST_ROWS = 2000
_LEAST_TOP_P = 1e-9


class Writing(Protocol):
    """What makes answers (`edge_client.worker.compiled.writing.Writer`)."""

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together, at most."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    def stream(
        self, prompt_ids: tuple[int, ...], options: GenerationOptions, constraint: Constraint | None = None
    ) -> Iterator[Step]:
        """An answer, as it is made."""
        ...


class Model(Protocol):
    """A model at hand."""

    @property
    def load(self) -> Load:
        """What was asked for."""
        ...

    @property
    def task(self) -> TaskSection:
        """What it does."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, as transformers has one."""
        ...

    @property
    def writer(self) -> Writing | None:
        """What makes its answers; None where it says labels."""
        ...

    def take(self, load: Load, held: Held) -> bool:
        """Hold the node's newer state, where it stands on the same base; False: load anew."""
        ...

    def classify(self, command: Classify) -> Classified:
        """Say which labels texts have, or their scores."""
        ...


class Answering:
    """Answers with one model at a time.

    Args:
        emit: Sends an event.
        environment: Where the cache folder is, and a compiler.
        full: Makes a model that needs torch, which it imports.
    """

    def __init__(
        self, emit: Callable[[Token], None], environment: Mapping[str, str], full: Callable[[Load], Model]
    ) -> None:
        self._emit, self._environment, self._full = emit, environment, full
        self._model: Model | None = None
        self._grammars: Grammars | None = None
        self._order: PropertyOrder | None = None
        self._unwanted = 0

    def stop(self, answer: int) -> None:
        """From the thread that reads commands: nobody waits for this answer any more."""
        self._unwanted = max(self._unwanted, answer)

    def load(self, command: Load) -> Loaded:
        """Hold a model; a newer state on the base that is held already takes no time to speak of.

        Raises:
            FedkrsoError: It cannot be held; ExactnessError where what lies on the disk is being changed.
        """
        held, model = command.held, self._model
        # Whatever comes of it, what was held until now is no more.
        self._model = None
        if model is not None and held is not None and self._same_base(model, held) and model.take(command, held):
            self._model = model
            return self._loaded(model)
        # Its memory goes first.
        del model
        self._grammars = self._order = None
        self._model = light_model(command, self._environment) or self._full(command)
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
        writer, messages = model.writer, [{"role": m.role, "content": m.content} for m in command.messages]
        if writer is None:
            raise DataError("this model says labels, not sentences", place="model", remedy="ask /v1/classify")
        prompt = prompt_ids(messages, model.tokenizer, model.task.template_text)
        left = writer.context_tokens - len(prompt)
        if (command.max_tokens or 1) > left:
            raise DataError(
                f"the conversation has {len(prompt):,} tokens"
                + (f" and the answer may have {command.max_tokens:,}" if command.max_tokens else "")
                + f", the context holds {writer.context_tokens:,} together",
                place="messages",
                remedy="shorten it, or lower max_tokens",
            )
        constraint = self._constraint(model, writer, command) if command.json_schema else None
        options = GenerationOptions(
            max_new_tokens=min(command.max_tokens or model.load.max_tokens, left),
            temperature=command.temperature,
            top_p=max(command.top_p, _LEAST_TOP_P),
            top_k=command.top_k,
            seed=command.seed,
            stop=command.stop,
        )
        said, finish = 0, "stop"
        for token in self._wanted(command.answer, writer.stream(prompt, options, constraint), ending):
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
        return self._held.classify(command)

    @property
    def _held(self) -> Model:
        if self._model is None:
            raise WorkerError("no model is loaded yet")
        return self._model

    def _loaded(self, model: Model) -> Loaded:
        kind: ModelKind = "chat"
        if model.writer is None:
            kind = "regression" if task_of(model.task).scale else "classification"
        context = model.writer.context_tokens if model.writer is not None else model.task.max_length
        labels = tuple(model.task.labels) if kind == "classification" else ()
        return Loaded(kind=kind, context_tokens=context, labels=labels, peak_bytes=peak_bytes())

    @staticmethod
    def _same_base(model: Model, held: Held) -> bool:
        return model.load.held is not None and model.load.held.run == held.run

    def _wanted(self, answer: int, tokens: Iterator[Any], ending: Callable[[], None]) -> Iterator[Any]:
        """The tokens, until nobody wants them."""
        for token in tokens:
            yield token
            ending()
            if answer <= self._unwanted:
                return

    def _constraint(self, model: Model, writer: Writing, command: Generate) -> Constraint:
        if self._grammars is None:
            self._grammars = Grammars(model.tokenizer, writer.end_tokens)
        if self._order is None:
            self._order = PropertyOrder(_answers(model.load.data, model.task))
        return self._grammars.constraint(self._order.applied(command.json_schema))


def _answers(data: DataSection | None, task: TaskSection) -> Iterator[str]:
    """What the assistant says in a node's own rows, in some of them where there are many."""
    if data is None or not task_of(task).conversations:
        return
    for example in load_texts(data, _MOST_ROWS, task):
        for message in example.messages:
            if message.get("role") == "assistant" and isinstance(message.get("content"), str):
                yield message["content"]
