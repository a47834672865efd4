# SPDX-License-Identifier: Apache-2.0
"""Whether a model that writes would be trained as transformers has it: `python -m edge_client.worker.programs.compare
FOLDER`, for `fedkrso doctor`. The coordinator asks the same before a run."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edge_client.worker.train.agreement import described
from fedcore.config.sections import TaskSection
from fedcore.errors import ModelError
from fedcore.weights.checkpoint import Checkpoint

__all__ = ["main"]

# Any model has positions for so many tokens.
_LENGTH = 16


def main(folder: Path) -> str:
    """What was found, in one line.

    Raises:
        ModelError: It is another model, or none that can be trained.
    """
    _, notes = described(Checkpoint(folder), TaskSection(kind="causal-lm", max_length=_LENGTH))
    return "; ".join(notes)


if __name__ == "__main__":
    try:
        sys.stdout.write(main(Path(sys.argv[1])) + "\n")
    except ModelError as error:
        sys.stderr.write(msgspec.json.encode((error.message, error.place, error.remedy)).decode() + "\n")
        sys.exit(error.exit_code)
