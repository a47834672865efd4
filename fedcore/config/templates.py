# SPDX-License-Identifier: Apache-2.0
"""A job's chat template: a file where the job is written, text in the plan, so that every node renders the same."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError

__all__ = ["with_template"]

_MOST_BYTES: Final = 100_000
"""Far more than any template has, and little in a plan."""


def with_template(task: TaskSection) -> TaskSection:
    """The task with the template itself instead of its file.

    Raises:
        ConfigError: The file cannot be read, or is no template.
    """
    if task.template is None:
        return task
    try:
        data = Path(task.template).read_bytes()
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"{task.template} cannot be read: {error.strerror}", place="task.template") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{task.template} is not UTF-8", place="task.template") from None
    if not text.strip() or len(data) > _MOST_BYTES:
        said = f"has {len(data)} bytes" if text.strip() else "is empty"
        raise ConfigError(f"{task.template} {said}", place="task.template", remedy="name a chat template (Jinja)")
    return msgspec.structs.replace(task, template=None, template_text=text)
