# SPDX-License-Identifier: Apache-2.0
"""The clients of a run and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.worker.data.tasks import Encoded, encode
from fedcore.config.sections import TaskSection
from fedcore.data.splits import Split, deal
from research.data.splits import LEAST_EXAMPLES
from research.data.tasks import Parts
from research.runs.rows import Setup

__all__ = ["Client", "clients_of", "label_counts"]


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: Of the node.
        encoded: Its rows.
    """

    name: str
    encoded: list[Encoded]


def clients_of(setup: Setup, parts: Parts, split: Split, tokenizer: Any, section: TaskSection) -> list[Client]:
    """Deal the rows that train.

    Args:
        setup: Of the run.
        parts: The task's rows.
        split: How they are dealt.
        tokenizer: The model's.
        section: The task.

    Raises:
        ConfigError: There are too few rows for so many clients.
    """
    dealt = deal([row.group for row in parts.train], setup.clients, split, setup.seed, least=LEAST_EXAMPLES)
    return [
        Client(f"client-{number}", encode([parts.train[index].example for index in part], section, tokenizer))
        for number, part in enumerate(dealt)
    ]


def label_counts(clients: Sequence[Client], section: TaskSection) -> NDArray[np.int64]:
    """(clients, labels): rows of each label; no columns where the task has no labels."""
    rows = [[row.target for row in client.encoded if isinstance(row.target, int)] for client in clients]
    return np.array([np.bincount(np.array(own, int), minlength=len(section.labels)) for own in rows])
