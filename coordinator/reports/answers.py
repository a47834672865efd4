# SPDX-License-Identifier: Apache-2.0
"""What a run's last model says of somebody's own sentences: asked in a process of its own, since the coordinator needs
no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.reports.export import export_run
from coordinator.store.folder import RunFolder
from coordinator.store.places import open_ledger
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.worker.asking import ask_worker
from fedcore.worker.serving import Answer, Answered

__all__ = ["Said", "ask_model"]


@dataclass(frozen=True)
class Said:
    """What a model says of a text.

    Attributes:
        label: The likeliest label; empty for a regression.
        score: Its probability, 0 to 1; a regression's score.
        text: What a model that writes answers.
    """

    label: str
    score: float
    text: str = ""

    def __str__(self) -> str:
        if self.text:
            return self.text
        return f"{self.label} ({self.score:.0%})" if self.label else f"{self.score:.3f}"


def ask_model(files: RunFolder, texts: Sequence[tuple[str, str | None]]) -> list[Said]:
    """Ask the model of a run's last round.

    The model is exported into the run's folder for as long as it takes.

    Args:
        files: The run's.
        texts: Each with its second sentence where the task has pairs, else None.

    Raises:
        ConfigError: Nodes have models of their own.
        FedkrsoError: No round is finished yet, or the process with the model failed.
    """
    with files.scratch() as folder:
        model = folder / "model"
        export_run(files, model)
        ledger = open_ledger(files)
        try:
            task = ledger.fact("task", TaskSection)
        finally:
            ledger.close()
        assert task is not None, "a run that was exported was prepared"
        answer = ask_worker(Answer(str(model), task, tuple(texts)), folder / "worker.log")
    assert isinstance(answer, Answered)
    if answer.texts:
        return [Said("", 0.0, text) for text in answer.texts]
    if task_of(task).scale:
        return [Said("", score) for (score,) in answer.scores]
    return [Said(task.labels[scores.index(max(scores))], max(scores)) for scores in answer.scores]
