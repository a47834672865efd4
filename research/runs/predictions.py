# SPDX-License-Identifier: Apache-2.0
"""What a run's last model says of each row that was not trained on, compactly: enough to compare two runs row by row.

Of a classification the label (uint8), of a regression the score (float32), of a causal-lm the loss (float32) of each
piece of text. Where each client has a model of its own there is a line for each client."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedcore.config.sections import TaskSection
from fedcore.errors import RunError

if TYPE_CHECKING:
    # They import torch, which a report does not need.
    from edge_client.worker.data.tasks import Encoded
    from edge_client.worker.train.evaluate import Scores

__all__ = ["PARTS", "Part", "Predictions", "load_predictions", "predictions_of", "save_predictions"]

Part = Literal["held", "dev"]
PARTS: tuple[Part, ...] = ("held", "dev")


@dataclass(frozen=True)
class Predictions:
    """Of one part of the rows.

    Attributes:
        said: (models, rows): labels, scores or losses.
        wanted: (rows,): labels, scores, or the tokens that a loss is the sum of.
    """

    said: NDArray[Any]
    wanted: NDArray[Any]


def predictions_of(found: Sequence[Scores], encoded: Sequence[Encoded], task: TaskSection) -> Predictions:
    """From what one model, or each client's, says."""
    if task.kind == "causal-lm":
        return Predictions(
            np.stack([scores.losses for scores in found]).astype(np.float32), found[0].weights.astype(np.int32)
        )
    targets = [e.target for e in encoded]
    if task.kind == "regression":
        return Predictions(np.stack([scores.outputs[:, 0] for scores in found]), np.array(targets, np.float32))
    said = np.stack([scores.outputs.argmax(axis=1) for scores in found])
    return Predictions(said.astype(np.uint8), np.array(targets, np.uint8))


def save_predictions(path: Path, parts: Mapping[Part, Predictions]) -> None:
    """Write them whole or not at all."""
    part_path = path.with_name(path.name + ".part")
    arrays = {
        f"{name}/{kind}": array
        for name, found in parts.items()
        for kind, array in (("said", found.said), ("wanted", found.wanted))
    }
    with part_path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    part_path.replace(path)


def load_predictions(path: Path) -> dict[Part, Predictions]:
    """Read what `save_predictions` wrote.

    Raises:
        RunError: Missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {
                name: Predictions(stored[f"{name}/said"], stored[f"{name}/wanted"])
                for name in PARTS
                if f"{name}/said" in stored.files
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"predictions cannot be read: {error}", place=str(path), remedy="delete the run's folder and run it again"
        ) from None
