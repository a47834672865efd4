# SPDX-License-Identifier: Apache-2.0
"""Whether what the worker needs is installed. The agent itself is light and imports none of it, and does not do so to
find out."""

from __future__ import annotations

import re
from importlib.util import find_spec

from fedcore.errors import WorkerError

__all__ = ["TRAINING_PACKAGES", "import_failure", "require_serving_packages", "require_training_packages"]

TRAINING_PACKAGES = ("torch", "transformers", "safetensors", "numpy")
"""What the worker imports, whatever the job."""
_SERVING_PACKAGES = ("starlette", "uvicorn")
_REMEDY = "pip install 'fedkrso[train]'"
# The last line of a traceback: a package that is not there, or one whose libraries the system does not have.
_FAILED_IMPORT = re.compile(r"(?:ModuleNotFoundError|ImportError): (.+)|OSError: (.*cannot open shared object file.*)")


def require_training_packages() -> None:
    """Return if this installation can train.

    Raises:
        WorkerError: It is the light one, without some of the packages that training needs.
    """
    missing = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    if missing:
        raise WorkerError(f"this installation cannot train: {', '.join(missing)} not installed", remedy=_REMEDY)


def require_serving_packages() -> None:
    """Return if this installation can serve.

    Raises:
        WorkerError: It is one without some of the packages for it.
    """
    missing = [name for name in _SERVING_PACKAGES if find_spec(name) is None]
    if missing:
        raise WorkerError(
            f"this installation cannot serve: {', '.join(missing)} not installed", remedy="pip install 'fedkrso[serve]'"
        )


def import_failure(tail: str) -> WorkerError | None:
    """The refusal for a worker whose last words are that a package cannot be imported: starting it again would not
    help. Else None.

    Args:
        tail: End of what the worker wrote.
    """
    lines = tail.strip().splitlines()
    found = _FAILED_IMPORT.fullmatch(lines[-1].strip()) if lines else None
    return (
        None
        if found is None
        else WorkerError(f"this installation cannot train: {found.group(1) or found.group(2)}", remedy=_REMEDY)
    )
