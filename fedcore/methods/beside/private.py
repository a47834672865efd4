# SPDX-License-Identifier: Apache-2.0
"""Whether a job can keep what its `[privacy]` promises: what cannot is refused by name before a run begins."""

from __future__ import annotations

from fedcore.config.privacy import PrivacySection, require_small
from fedcore.config.sections import HeadSection, TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError
from fedcore.methods.interface import MethodSettings
from fedcore.numbers.rules import Mean, Rule

__all__ = ["require_nothing_beside", "require_private"]


def require_private(
    section: PrivacySection, settings: MethodSettings, task: TaskSection, head: HeadSection, rule: Rule
) -> None:
    """Check that noise can hide what it is to hide, in this method and task.

    Args:
        section: `[privacy]`.
        settings: `[method]`.
        task: `[task]`.
        head: `[head]`.
        rule: Of `[safety]`, as it is made.

    Raises:
        ConfigError: It cannot.
    """
    if section.noise is None:
        return
    place = f"privacy.{section.level}"
    if head.start == "ridge":
        raise ConfigError(
            "a head start would tell second moments of texts' features, and its noise is not counted with the rounds'",
            place="head.start",
            remedy='write "random"; or use the method fed3r, whose sums have noise',
        )
    if section.node is not None:
        _require_sums(settings, rule, place)
    if section.example is not None:
        _require_examples(settings, task, place)
        if not settings.told_once and settings.batch_size > section.example.least_examples:
            raise ConfigError(
                f"a batch of {settings.batch_size} cannot be drawn from {section.example.least_examples} examples",
                place=f"{place}.least_examples",
                remedy="lower method.batch_size",
            )


def _require_sums(settings: MethodSettings, rule: Rule, place: str) -> None:
    if why := settings.not_with_noise:
        raise ConfigError(f"no noise hides a node's part in {settings.name}: {why}", place=place, remedy="use fedkrso")
    if not isinstance(rule, Mean):
        raise ConfigError(
            "how far one node moves a median or a trimmed mean has no bound that noise could hide",
            place="safety.rule",
            remedy='use "mean": the clip bounds what one node can do',
        )


def _require_examples(settings: MethodSettings, task: TaskSection, place: str) -> None:
    if why := settings.not_by_example:
        raise ConfigError(
            f"no noise hides an example's part in {settings.name}: {why}", place=place, remedy="use fedkrso"
        )
    if task_of(task).outputs() is None:
        raise ConfigError(
            f"in {task.kind} what counts as an example is a piece of text, and losses are summed over its tokens",
            place=place,
            remedy="use privacy.node, or a task with a head",
        )


def require_nothing_beside(
    section: PrivacySection,
    nodes: int,
    norm_bound: float,
    trained_tensors: tuple[str, ...],
    *,
    on_nodes: bool,
) -> None:
    """Check that nothing else in a job would tell what noise hides.

    Args:
        section: `[privacy]`.
        nodes: How many there are, as far as the job says.
        norm_bound: Of `[safety]`; 0 for none.
        trained_tensors: Of `[model]`.
        on_nodes: Whether they measure published states.

    Raises:
        ConfigError: Something would.
    """
    if section.noise is not None and on_nodes:
        raise ConfigError(
            "what nodes measure on their own rows has no noise, and is told",
            place="evaluation.where",
            remedy='write "coordinator", with rows of its own, or leave the section out',
        )
    if section.node is not None:
        if norm_bound not in (0, section.node.clip):
            raise ConfigError(
                "two bounds on an update's norm",
                place="safety.norm_bound",
                remedy="leave it out: privacy.node.clip is one",
            )
        require_small(section.node.delta, nodes, "node", "nodes")
    if section.example is not None and trained_tensors:
        raise ConfigError(
            "tensors trained whole beside the head have no gradient for each example",
            place="model.trained_tensors",
            remedy="leave them out, or use privacy.node",
        )
