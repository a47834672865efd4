# SPDX-License-Identifier: Apache-2.0
"""What whoever asks a model and the worker that answers for it say to each other: commands down, events up.

One command at a time, as with every worker; `Stop` alone overtakes the one that is being answered."""

from __future__ import annotations

from typing import Literal

import msgspec

from fedcore.config.sections import DataSection, TaskSection
from fedcore.round.plan import Plan

__all__ = [
    "Answer",
    "Answered",
    "ChatMessage",
    "Classified",
    "Classify",
    "FinishReason",
    "Generate",
    "Generated",
    "Held",
    "Load",
    "Loaded",
    "ModelKind",
    "Role",
    "Stop",
    "Token",
]

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
ModelKind = Literal["chat", "classification", "regression"]


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What a node holds of its run, and what whoever reads it from the disk needs to know."""

    run: str
    node: str
    version: int
    generation: int
    digest: str
    """Of the model: what is read from the disk must have it."""
    plan: Plan
    """The run's last: schema, base, task, training."""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Hold a model to answer with, in place of what was held before."""

    model_folder: str
    """The run's checkpoint, or a whole model."""
    held: Held | None = None
    """What the node holds of its run; None: the model as it lies in its folder."""
    folder: str = ""
    """Where the node's training worker keeps its replica. It is only read."""
    artefact: str = ""
    """File of the run's artefact, where the plan has one."""
    scratch: str = ""
    """The server's own folder, for 8-bit weights that nobody has made yet."""
    data: DataSection | None = None
    """The node's own text; from its answers comes the order of an object's properties. None: the schema's order."""
    threads: int = 1
    torch_device: str = "cpu"
    compute_dtype: str = "float32"
    mapped: bool = False
    """Leave the weights on disk and map them."""
    max_context: int = 0
    """Tokens of question and answer together at most; 0: as many as the model and the memory allow."""
    max_tokens: int = 512
    """Of an answer, where a request names no number."""
    room_bytes: int = 0
    """What the worker may have in all; 0: nobody says."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """Answer to `Load`."""

    kind: ModelKind
    context_tokens: int
    """Tokens of question and answer together at most; of a text that is classified."""
    labels: tuple[str, ...] = ()
    peak_bytes: int | None = None
    """Highest resident size of the worker until now."""


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Answer a conversation; gives `Token`s, and `Generated` at the end."""

    answer: int
    """Tells this answer from others."""
    messages: tuple[ChatMessage, ...]
    max_tokens: int | None = None
    """None: as many as fit, up to the server's own bound."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    json_schema: str = ""
    """A JSON schema that the answer must meet; empty: none."""


class Token(msgspec.Struct, frozen=True, tag="token"):
    """Some more of an answer: of one token or several, where one alone is no whole character."""

    answer: int
    text: str


class Generated(msgspec.Struct, frozen=True, kw_only=True, tag="generated"):
    """The answer is complete, or was stopped."""

    answer: int
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    stopped: bool = False
    """Nobody wanted it any more."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Nobody waits for this answer any more. Has no answer of its own; `Generated` comes as always."""

    answer: int


class Classify(msgspec.Struct, frozen=True, tag="classify"):
    """Say what the held model says of texts."""

    texts: tuple[tuple[str, str | None], ...]
    """Each with its second sentence, where the task has pairs."""


class Classified(msgspec.Struct, frozen=True, tag="classified"):
    """Answer to `Classify`."""

    scores: tuple[tuple[float, ...], ...]
    """Of each text: the probability of every label, in the task's order; or a regression's one score."""
    truncated: tuple[int, ...] = ()
    """Texts that are longer than the model was trained for: only their beginning was looked at."""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """Say what a finished model says of texts."""

    model_folder: str
    """As exported: weights and tokenizer."""
    task: TaskSection
    texts: tuple[tuple[str, str | None], ...]
    """Each with its second sentence, where the task has pairs."""


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """Answer to `Answer`."""

    scores: tuple[tuple[float, ...], ...]
    """Of each text: the probability of every label, in the task's order; or a regression's one score. None where the
    model writes."""
    texts: tuple[str, ...] = ()
    """What a model that writes says to each text."""
