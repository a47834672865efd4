# SPDX-License-Identifier: Apache-2.0
"""Sections of job and node files that both sides read."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import msgspec

from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError
from fedcore.fields.types import POOLED, HeadBegin, Pooled, Pooling, Start
from fedcore.transport.address import check_url, is_encrypted

__all__ = ["PATH", "BrokerSection", "DataSection", "HeadSection", "PathText", "TaskSection", "TrustSection"]

PATH: Final = msgspec.Meta(extra={"path": True})
PathText = Annotated[str, PATH]
"""A path, which `load_config` makes absolute; a key that also takes names keeps those as they are."""


class TaskSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[task]`: what the model learns to do."""

    kind: str
    """A registered task (`fedcore.config.tasks`): text-classification, pair-classification, regression, causal-lm,
    instruction, or one of a package that is installed beside."""
    labels: tuple[str, ...] | str = ()
    """The label set, in order; or `package.module:function` that returns it. Empty where there are no labels."""
    max_length: int = 128
    """Tokens per example; longer ones are truncated (causal-lm: cut into pieces; instruction: as `too_long` says)."""
    min_length: int = 0
    """Tokens that a device with too little memory may cut its examples to; 0: no fewer than `max_length`."""
    middle: Start = 0.0
    """Regression: the middle of the scale, 2.5 where scores go from 0 to 5. A new head says that of every text from the
    start, and does not spend its first rounds on learning it from clients that each see a part of the scale. Heads
    without a bias (Llama's) begin at 0."""
    pooling: Pooling = "auto"
    """Tasks with a head: what of a text the head looks at. `mean`, `first`, `last`, `max`: of the last hidden states of
    all tokens, or of one. `model`: what transformers' own class for classification does. `auto`: as a sentence model's
    `modules.json` says that it was trained, else `model`."""
    template: PathText | None = None
    """Instruction: a file with the chat template (Jinja), which the plan carries to all nodes; left out: the
    tokenizer's."""
    template_text: str = ""
    """Instruction: the template itself, rather than a file."""
    learn: Literal["all", "last"] = "all"
    """Instruction: which of the assistant's turns are learned."""
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    """Instruction: what becomes of a row of more than `max_length` tokens: an error, left out, or its prompt is cut
    from the left so that the answer stays whole."""
    pack: bool = False
    """Instruction: several examples in one row of at most `max_length` tokens, kept apart."""

    @property
    def pooled(self) -> Pooled | None:
        """How the model pools where that is not its own class's to say; None where it is.

        `auto` is the class's too: of a run, it was resolved before its first round.
        """
        return next((one for one in POOLED if one == self.pooling), None)

    def __post_init__(self) -> None:
        task_of(self).check()
        if self.pooling != "auto" and task_of(self).outputs() is None:
            raise ConfigError(
                f"{self.kind} has no head that would look at a text", place="task.pooling", remedy="leave it out"
            )


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[data]`: where a node's (or the evaluation's) text is, and which columns count."""

    source: PathText
    """A CSV, TSV, JSONL or Parquet file, or `package.module:function`."""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    """By the file's ending. `csv`: texts may be in quotation marks, with commas, semicolons, tabs or bars between
    columns; `tsv`: tabs, and a quotation mark is a character like others."""
    text: str = "text"
    """Column with the text (or first sentence)."""
    text_pair: str | None = None
    """Column with the second sentence; none where it is empty."""
    label: str | None = "label"
    """Column with the label or score; none where it is empty."""
    messages: str = "messages"
    """Instruction: column with a conversation, a list of `{"role": ..., "content": ...}`."""
    prompt: str = "prompt"
    completion: str = "completion"
    """Instruction: columns with what is asked and what is to be answered, in rows without a conversation."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for `package.module:function`."""
    held_out: PathText | None = None
    """Of a node: rows that it never trains on and measures published states on, as `source` is, with the same columns.
    Left out: the job's `evaluation.share` of its rows is held out."""

    def __post_init__(self) -> None:
        self.require_distinct("data")

    def require_distinct(self, place: str) -> None:
        """Check that no column, and no file, is meant to be two things.

        Args:
            place: The section's name.

        Raises:
            ConfigError: What is to be foreseen would be what is read, or rows that are measured would be trained on.
        """
        named = {"text": self.text, "text_pair": self.text_pair, "label": self.label}
        taken: dict[str, str] = {}
        for key, column in named.items():
            if column and column in taken:
                raise ConfigError(
                    f"{taken[column]} and {key} are both column {column!r}",
                    place=f"{place}.{key}",
                    remedy=f'name another, or write {key} = "" where there is none',
                )
            if column:
                taken[column] = key
        if self.held_out and self.held_out == self.source:
            raise ConfigError(
                "the rows that are held out are those that are trained on",
                place=f"{place}.held_out",
                remedy="name other rows, or leave it out: then the job's evaluation.share is held out",
            )

    def alone(self) -> DataSection:
        """Without what a section that derives from this one has beside."""
        return DataSection(**{key: getattr(self, key) for key in DataSection.__struct_fields__})


class HeadSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[head]`: what a new task head holds before the method's first round."""

    start: HeadBegin | Literal["auto"] = "auto"
    """`random`: small seeded numbers. `ridge`: the solution of a ridge regression on the frozen model's features, over
    the rows of all nodes; it takes the run's first round, in which nodes send sums (docs/methods.md). `auto`: `ridge`
    wherever such a head can be had and its sums are small, else `random`."""
    rates: float | None = None
    """After `ridge`: factor on the method's learning rates, above 0 and up to 1. Left out: 1.0 with ten labels or more,
    else 0.1, since a node that has mostly one of two labels pulls a good head away."""
    again: int | tuple[int, ...] | Literal["auto", "end"] = "auto"
    """With `ridge`, a head from sums once more, of the features as they are by then. `end`: in the run's last round.
    A number: after so many rounds of the method each, and the run's last round is a head's. Several: in these rounds,
    which is also what the coordinator makes of `end`. 0: the first one alone. `auto`: `end` wherever it can be, and
    leaves three rounds or more to the method."""

    def __post_init__(self) -> None:
        if isinstance(self.again, int) and not 0 <= self.again < 2**31:
            raise ConfigError(f"again is {self.again}, it must be 0 or a number of rounds", place="head.again")
        if isinstance(self.again, tuple) and any(
            later <= earlier for earlier, later in pairwise((1, *self.again, 2**31))
        ):
            raise ConfigError(
                f"again is {list(self.again)}, and round 1 is the first head's",
                place="head.again",
                remedy="write rounds from 2 on, smaller ones first",
            )
        if self.comes_again and self.start != "ridge":
            raise ConfigError(
                f"again is {self.again}, and there is no head from sums",
                place="head.again",
                remedy='add start = "ridge"',
            )
        if self.rates is not None and not 0 < self.rates <= 1:
            raise ConfigError(f"rates is {self.rates:g}, it must be above 0 and up to 1", place="head.rates")

    @property
    def comes_again(self) -> bool:
        """Whether there is another one after the first, once it is settled."""
        return self.again != "auto" and bool(self.again)

    def heads_until(self, server_round: int) -> int:
        """How many of the rounds from 1 to this one are for a head from sums; of `auto` and `end` the first alone,
        until the coordinator has settled them.

        Example:
            >>> [HeadSection(start="ridge", again=2).heads_until(number) for number in range(1, 8)]
            [1, 1, 1, 2, 2, 2, 3]
            >>> [HeadSection(start="ridge", again=(6,)).heads_until(number) for number in range(1, 8)]
            [1, 1, 1, 1, 1, 2, 2]
        """
        if self.start != "ridge" or server_round < 1:
            return 0
        if isinstance(self.again, tuple):
            return 1 + sum(number <= server_round for number in self.again)
        return 1 + (server_round - 1) // (self.again + 1) if isinstance(self.again, int) and self.again else 1

    def is_head(self, server_round: int) -> bool:
        """Whether a round is."""
        return self.heads_until(server_round) > self.heads_until(server_round - 1)


class BrokerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[broker]`: where the MQTT broker is and who we are there."""

    url: str
    """`mqtts://host:8883`: TLS, and the broker's certificate must carry this host's name. `wss://host/path`: the same
    over WebSockets, where only the web's ports pass. `mqtt://host:1883` and `ws://host/path` only with `insecure`."""
    insecure: bool = False
    """Allow `mqtt://`: whoever can see or change the network's packets can read and change everything, passwords
    too."""
    username: str | None = None
    password: str | None = None
    password_file: PathText | None = None
    """File that holds the password alone; rather than `password`."""
    ca_file: PathText | None = None
    """Certificate authority that the broker's certificate must come from; the system's by default."""
    certificate_file: PathText | None = None
    key_file: PathText | None = None
    """The client's own certificate and its key; with them there is no password."""
    messages_per_second: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0.0
    """Most messages that this program publishes in a second, where the broker takes no more of a client and drops the
    rest; 0 for no limit."""
    bytes_per_second: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0
    """Likewise, of bytes."""
    qos: Literal[0, 1] = 1
    """MQTT's quality of service. With 0 a broker delivers at most once and keeps nothing for who is away: what is lost
    is sent again by fedkrso itself. It is for clusters that pay for each subscription (docs/deploy.md)."""

    def __post_init__(self) -> None:
        check_url(self.url)
        for key, least in (("messages_per_second", 5), ("bytes_per_second", 65_536)):
            if 0 < getattr(self, key) < least:
                raise ConfigError(
                    f"{getattr(self, key):g} is too slow for a run", place=f"broker.{key}", remedy=f"at least {least}"
                )
        if not is_encrypted(self.url) and not self.insecure:
            raise ConfigError(
                f"{self.url} is not encrypted: whoever sees the network's packets can read and change them",
                place="broker.insecure",
                remedy="write mqtts://host:8883 (fedkrso provision makes the certificates), "
                "or allow it with insecure = true",
            )


class TrustSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust]`: Ed25519 keys that sign plans, published states and updates end to end, so that not even the broker has
    to be trusted.

    `fedkrso provision` makes them. A coordinator names `signing_key` and `enrolled`, a node `signing_key` and
    `coordinator_key`."""

    signing_key: PathText | None = None
    """File with our own secret key: 64 hex characters, readable by its owner only."""
    enrolled: PathText | None = None
    """JSON file with every enrolled node's public key, and the nodes that are revoked."""
    coordinator_key: PathText | None = None
    """The coordinator's public key: 64 hex characters, or a file with them."""
    authority_key: str | None = None
    """Of a node: public key of whoever enrolled the nodes, 64 hex characters. With secure aggregation a node believes
    the keys of other nodes that are signed with it, whatever the coordinator says."""
    enrolment: str = ""
    """Of a node: the authority's signature over its name and key, 128 hex characters."""
    require_secure_aggregation: bool = False
    """Of a node: it declines rounds of a run without secure aggregation, whatever the coordinator says."""

    def __post_init__(self) -> None:
        for key, length in (("authority_key", 64), ("enrolment", 128)):
            value = getattr(self, key)
            if value and not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
                raise ConfigError(
                    f"not {length} hexadecimal characters", place=f"trust.{key}", remedy="fedkrso provision writes it"
                )
