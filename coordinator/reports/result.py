# SPDX-License-Identifier: Apache-2.0
"""What a run came to, for a program: its rounds, its digest, and its model in other people's formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.reports.adapter import export_adapter
from coordinator.reports.answers import Said, ask_model
from coordinator.reports.export import export_run
from coordinator.reports.gguf import GgufNumbers, export_gguf
from coordinator.reports.lastmodel import Which
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """A run at its end.

    Attributes:
        folder: Where everything of the run lies.
        summary: What it came to as plain values, as `summary.json` has it.
        rounds: Published rounds, first to last.
        finished: Whether all rounds are done; False for a run that was stopped.
    """

    folder: RunFolder
    summary: dict[str, Any]
    rounds: tuple[RoundRow, ...]
    finished: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the model, the same on every node; empty before the first round."""
        return str(self.summary["final"]["digest"])

    @property
    def accuracy(self) -> float | None:
        """Of the last round that was measured; None where none was."""
        return next((row.accuracy for row in reversed(self.rounds) if row.accuracy is not None), None)

    @property
    def best(self) -> int | None:
        """The best round, by `evaluation.best_by` of the job; None where nothing was measured. Its model is kept:
        `export(folder, which="best")`."""
        best = self.summary.get("best")
        return None if best is None else int(best["round"])

    @property
    def report(self) -> Path:
        """The run as a page for people."""
        return self.folder.report

    def ask(self, *texts: str) -> list[Said]:
        """What the last round's model says of each text: an answer, a label with its probability, or a score.

        Args:
            texts: A question each, to a model that writes.

        Raises:
            FedkrsoError: No round is finished, nodes have models of their own, or the process with the model failed.
        """
        return ask_model(self.folder, [(text, None) for text in texts])

    def export(self, folder: Path | str, which: Which = "last") -> Path:
        """Write the model as a Hugging Face folder, which `from_pretrained` loads.

        Args:
            folder: A new or an empty one.
            which: Round; the last and the best are always there.

        Raises:
            FedkrsoError: No round is finished, or nodes have models of their own.
        """
        export_run(self.folder, Path(folder), which=which)
        return Path(folder)

    def export_adapter(self, folder: Path | str, which: Which = "last") -> Path:
        """Write what was learned as a LoRA adapter, which `peft` loads on the original checkpoint: the same model.

        Args:
            folder: A new or an empty one.
            which: Round; the last and the best are always there.

        Raises:
            FedkrsoError: No round is finished, or what the method learns is no pair of factors.
        """
        export_adapter(self.folder, Path(folder), which=which)
        return Path(folder)

    def export_gguf(self, path: Path | str, numbers: GgufNumbers = "q8_0", which: Which = "last") -> Path:
        """Write the model as a GGUF file, which llama.cpp loads, with tokenizer and chat template.

        Args:
            path: Of a new file.
            numbers: What weights are stored in: q8_0 (8 bits, a scale for 32 of them), f16 or f32.
            which: Round; the last and the best are always there.

        Raises:
            FedkrsoError: No round is finished, or a model that no GGUF file is written for; it is named.
        """
        export_gguf(self.folder, Path(path), numbers, which=which)
        return Path(path)
