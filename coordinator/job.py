# SPDX-License-Identifier: Apache-2.0
"""The job file: one run of federated fine-tuning, described in small sections."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from coordinator.objects.section import ObjectsSection
from coordinator.rounds.section import AggregationSection, RoundSection
from fedcore.config.channel import ChannelSection
from fedcore.config.privacy import PrivacySection
from fedcore.config.safety import SafetySection
from fedcore.config.sections import BrokerSection, DataSection, HeadSection, PathText, TaskSection, TrustSection
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError
from fedcore.fields.types import BaseKind
from fedcore.methods import AnySettings, server_half
from fedcore.methods.beside.averaged import require_averageable
from fedcore.methods.beside.buffered import require_buffered
from fedcore.methods.beside.heads import require_heads_again
from fedcore.methods.beside.private import require_nothing_beside, require_private
from fedcore.methods.beside.secure import SecureSection, require_secure
from fedcore.methods.combining import require_combining
from fedcore.methods.fed3r import require_head_start
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.registry import METRICS, metric_kind
from fedcore.round.measurement import DEFAULT_NEW_TOKENS, NodeEvaluation
from fedcore.round.staleness import NONE_BEHIND, Staleness

__all__ = [
    "CalibrationSection",
    "EvaluationSection",
    "Job",
    "LedgerSection",
    "ModelSection",
    "RoundSection",
    "SafetySection",
]


class ModelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[model]`: what is fine-tuned."""

    folder: PathText
    """A Hugging Face model folder, or `package:folder` for one that a Python package carries."""
    base: BaseKind = "int8"
    """How the frozen base is held."""
    trained_tensors: tuple[str, ...] = ()
    """Checkpoint tensors trained whole beside the task head, such as `*.LayerNorm.*`."""
    schema_file: PathText | None = None
    """Output of `fedkrso model describe`, for a coordinator without torch."""


class EvaluationSection(DataSection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[evaluation]`: published states are measured: on rows of the coordinator's own, on rows that nodes hold out, or
    on both."""

    source: PathText = ""
    """The coordinator's rows; not where only nodes measure."""
    where: Literal["coordinator", "nodes", "both"] = "coordinator"
    """Who measures. Nodes measure the state that a round starts from before they train from it, and the last one when
    the run ends; their rows stay where they are, sums travel."""
    metrics: tuple[str, ...] = ()
    """What is measured beside what the task measures by itself: registered metrics (`fedcore.numbers.metrics`; of
    generated answers, `fedcore.numbers.texts`), or, at the coordinator alone, `package.module:function`."""
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    """Of an answer, where a metric compares texts: then every measured row is answered, as likely as the model can."""
    every: int = 1
    """Every how many rounds; the last state is always measured."""
    rows: int = 0
    """At most so many held-out rows, at the coordinator and on each node, the same in every round; 0 for all."""
    share: float = 0.1
    """Part of a node's rows that it holds out, at most 0.5, where its file has no `data.held_out`. Which rows these are
    is decided by the rows themselves (docs/evaluation.md)."""
    share_seed: int = 0
    """Other held-out rows. With the same seed they are the same in every run."""
    best_by: str = "accuracy"
    """What makes a round the best: `accuracy`, `loss`, a metric; `nodes.` before it (a must if nodes alone measure)."""
    stop_after: int = 0
    """The run ends early once so many measurements in a row have brought nothing better; 0: never."""

    def __post_init__(self) -> None:
        self.require_distinct("evaluation")
        for name in self.metrics:
            if ":" not in name:
                METRICS.get(name, place="evaluation.metrics")
            elif self.where == "nodes":
                raise ConfigError(
                    f"nodes do not run {name!r}: a plan does not choose code",
                    place="evaluation.metrics",
                    remedy="register it (@register_metric) and install its package on the nodes",
                )
        names = [name.rpartition(":")[2] for name in self.metrics]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ConfigError(f"two metrics are named {twice!r}", place="evaluation.metrics", remedy="leave one out")
        if self.held_out is not None:
            raise ConfigError(
                "only a node holds rows out", place="evaluation.held_out", remedy="name the rows in evaluation.source"
            )
        if not 0 <= self.share <= 0.5:
            raise ConfigError(f"share is {self.share}, it must be 0 to 0.5", place="evaluation.share")
        for key, least in (("every", 1), ("rows", 0), ("share_seed", 0), ("stop_after", 0), ("max_new_tokens", 1)):
            if not least <= getattr(self, key) < 2**31:
                raise ConfigError(
                    f"{key} is {getattr(self, key)}, it must be at least {least}", place=f"evaluation.{key}"
                )
        if self.max_new_tokens > 65_536:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens}, it must be at most 65536", place="evaluation.max_new_tokens"
            )
        if self.best_on == "nodes" and not self.on_nodes:
            remedy = 'set evaluation.where to "nodes" or "both"'
            raise ConfigError("nodes measure nothing", place="evaluation.best_by", remedy=remedy)

    @property
    def data(self) -> DataSection:
        """Where the coordinator's text is."""
        return self.alone()

    @property
    def here(self) -> bool:
        """Whether the coordinator measures."""
        return self.where != "nodes"

    @property
    def on_nodes(self) -> bool:
        """Whether nodes measure."""
        return self.where != "coordinator"

    @property
    def best_on(self) -> Literal["coordinator", "nodes"]:
        """Whose rows decide which round is the best."""
        return "nodes" if self.where == "nodes" or self.best_by.startswith("nodes.") else "coordinator"

    @property
    def best_name(self) -> str:
        """The number that decides."""
        return self.best_by.removeprefix("nodes.")

    def is_due(self, version: int) -> bool:
        """Whether a version is measured, also if it is not the last."""
        return version % self.every == 0

    def asked(self, task: TaskSection, version: int) -> NodeEvaluation | None:
        """What a plan that starts from a version asks its nodes for.

        Args:
            task: With its labels as a list.
            version: The state that the round starts from.
        """
        if not self.on_nodes:
            return None
        own = task_of(task).metrics()
        registered = (name for name in self.metrics if ":" not in name and name not in own)
        return NodeEvaluation(
            due=self.is_due(version),
            share=self.share,
            share_seed=self.share_seed,
            rows=self.rows,
            metrics=(*own, *registered),
            max_new_tokens=self.max_new_tokens,
        )


class CalibrationSection(DataSection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[calibration]`: text of the coordinator's own that the method's run artefact is made from; labels are not looked
    at."""

    rows: int = 512
    """Texts at most, evenly spread over the source."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"rows is {self.rows}, it must be positive", place="calibration.rows")

    @property
    def data(self) -> DataSection:
        """Where the text is."""
        return self.alone()


class LedgerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[ledger]`: where what decides the model is written down; without it, in a file of SQLite in the run's folder."""

    url: str
    """`postgresql://user@host:5432/database`, with parameters of libpq after a `?`: a database of PostgreSQL, which may
    hold many runs."""
    password_file: PathText | None = None
    """File that holds the password alone; left out: where libpq looks, `~/.pgpass` above all."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            wrong, secret = parts.scheme not in ("postgresql", "postgres"), parts.password is not None
        except ValueError:
            wrong, secret, parts = True, False, urlsplit("")
        if secret or "password=" in parts.query:
            # It is not repeated: errors are printed and logged.
            remedy = "write it into a file that only you can read, and name that in ledger.password_file"
            raise ConfigError("an address has no password in it", place="ledger.url", remedy=remedy)
        if wrong:
            remedy = "postgresql://user@host:5432/database; leave the section out for a file in the run's folder"
            raise ConfigError(f"{self.url[:80]!r} is no address of PostgreSQL", place="ledger.url", remedy=remedy)


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A job file."""

    run: str
    """Name of the run: its folder, its topics and its digest depend on it."""
    fleet: str = ""
    """The fleet whose nodes take part; `fedkrso server` sets it (docs/server.md). Empty: nodes that name this run."""
    seed: int = 0
    """Everything random in the run derives from it."""
    model: ModelSection
    task: TaskSection
    method: AnySettings = FedKRSOSettings()
    round: RoundSection = RoundSection()
    head: HeadSection = HeadSection()
    safety: SafetySection = SafetySection()
    secure_aggregation: SecureSection | None = None
    privacy: PrivacySection = PrivacySection()
    channel: ChannelSection | None = None
    """What local training's embeddings come over; without it, nothing disturbs them."""
    broker: BrokerSection
    trust: TrustSection = TrustSection()
    ledger: LedgerSection | None = None
    """Where the run's ledger begins; `fedkrso runs move` changes it later, and `ledger.json` in the run's folder says
    where it is."""
    aggregation: AggregationSection | None = None
    """Other processes that add updates up; without it, the coordinator does."""
    objects: ObjectsSection | None = None
    """A store beside the broker that nodes fetch large published states from."""
    evaluation: EvaluationSection | None = None
    """What is measured; without it, nothing is."""
    calibration: CalibrationSection | None = None
    """Text for a method whose run artefact is made from some."""

    def __post_init__(self) -> None:
        for key, name in (("run", self.run), ("fleet", self.fleet or "none")):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ConfigError(
                    f"{name!r} cannot be a {key}'s name",
                    place=key,
                    remedy="letters, digits, '.', '_' and '-', at most 64",
                )
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed {self.seed} is not an unsigned 64-bit integer", place="seed")
        kind = (training := server_half(self.method).training(1, self.seed)).artefact_kind
        made_from_text = kind.name if kind is not None and kind.from_text else ""
        if made_from_text and self.calibration is None:
            words, remedy = f"there is no text to make {made_from_text} from", "add it, with source and text"
            raise ConfigError(words, place="calibration", remedy=remedy)
        if self.calibration is not None and not made_from_text:
            words = f"{self.method.name} as it is here needs no text"
            raise ConfigError(words, place="calibration", remedy="leave it out")
        if (why := self.method.needs_head) and task_of(self.task).outputs() is None:
            remedy = "use another method, or a task with labels"
            raise ConfigError(f"{self.task.kind} has no new head: {why}", place="method.name", remedy=remedy)
        if self.task.pack and self.method.virtual_tokens:
            words = "virtual tokens stand before one text, not before several in one row"
            raise ConfigError(words, place="task.pack", remedy="leave it out")
        if self.evaluation is not None and self.evaluation.here:
            if not training.shares_model:
                remedy = 'nodes have models of their own: set where to "nodes"'
                raise ConfigError(
                    f"{self.method.name} has no model to evaluate here", place="evaluation", remedy=remedy
                )
            if not self.evaluation.source:
                remedy = 'add it, or set where to "nodes"'
                raise ConfigError("there is nothing to measure on", place="evaluation.source", remedy=remedy)
        if self.evaluation is not None:
            self._check_measured(self.evaluation)
        require_combining(self.method, self.safety.combining(), self.safety.rule, self.round.quorum)
        require_head_start(self.head, self.task, training, self.safety.combining(), self.safety.rule)
        on_nodes, masked = self.evaluation is not None and self.evaluation.on_nodes, self.secure_aggregation is not None
        if (secure := self.secure_aggregation) is not None:
            require_secure(secure, self.method, self.safety, self.round, self.head.start, on_nodes=on_nodes)
        if self.aggregation is not None and self.ledger is None:
            remedy = "add a [ledger] in PostgreSQL, or leave the section out"
            raise ConfigError("work is handed out through a database", place="aggregation", remedy=remedy)
        if self.round.buffered:
            noise = self.privacy.noise is not None
            require_buffered(self.method, self.safety.rule, masked=masked, noise=noise, on_nodes=on_nodes)
        if self.method.in_turn and (self.round.cohort, self.round.order) != (1, "cycle"):
            words = f"{self.method.name} has one node train at a time, in turn"
            raise ConfigError(words, place="round.cohort", remedy='write cohort = 1 and order = "cycle" in [round]')
        half, last = server_half(self.method), self.round
        require_heads_again(self.head, last.rounds, buffered=last.buffered, averaged=last.average_last > 1)
        require_averageable(self.method, half, self.seed, last.rounds, last.average_last)
        require_private(self.privacy, self.method, self.task, self.head, self.safety.combining())
        if self.channel is not None and self.privacy.example is not None:
            raise ConfigError(
                "an example's noise depends on which others are in its batch, and that would tell of them",
                place="channel",
                remedy="leave it or privacy.example out",
            )
        nodes, whole = max(self.round.min_nodes, self.round.cohort), self.model.trained_tensors
        require_nothing_beside(self.privacy, nodes, self.safety.norm_bound, whole, on_nodes=on_nodes)

    @property
    def full_name(self) -> str:
        """The run's name with its fleet's, for whatever must differ from all other runs at a broker."""
        return f"{self.fleet}-{self.run}" if self.fleet else self.run

    @property
    def phases(self) -> dict[int, str]:
        """What rounds are for that are none of the method's own."""
        return {number: "head" for number in range(1, self.round.rounds + 1) if self.head.is_head(number)}

    @property
    def staleness(self) -> Staleness:
        """How far updates may be behind. Of buffered rounds, those are not that are none of the method's own."""
        settings = self.round
        first = 1 + len(self.phases)
        return Staleness(settings.max_staleness, settings.staleness_factor, first) if settings.buffered else NONE_BEHIND

    def _check_measured(self, section: EvaluationSection) -> None:
        task = task_of(self.task)
        for name in section.metrics:
            of_texts = ":" not in name and metric_kind(METRICS.get(name)).compares == "texts"
            if of_texts and task.outputs() is not None:
                raise ConfigError(
                    f"{name!r} compares texts, and a model for {self.task.kind} writes none",
                    place="evaluation.metrics",
                    remedy="leave it out",
                )
            if of_texts and (why := self.method.not_with_answers):
                remedy = "leave it out, and measure answers of an exported model"
                raise ConfigError(f"{name!r} needs answers: {why}", place="evaluation.metrics", remedy=remedy)
        names = ["accuracy", "loss", *task.metrics(), *task.derived(0.0)]
        names += [name.rpartition(":")[2] for name in section.metrics]
        if section.best_name not in names:
            raise ConfigError(
                f"no number {section.best_name!r} is measured",
                place="evaluation.best_by",
                remedy=f"one of {', '.join(names)}, or add it to evaluation.metrics",
            )
