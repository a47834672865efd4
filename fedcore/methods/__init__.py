# SPDX-License-Identifier: Apache-2.0
"""Settings and server halves of the federated methods: one file each, in its family's folder, found through the
registry (`fedcore.round.methods`).

- `whole`: weights themselves train, in full.
- `lora`: two thin factors beside each weight.
- `adapters`: small tensors beside frozen layers.
- `prompts`: vectors before texts, or before keys and values.
- `seeded`: coefficients of directions that every machine makes from a seed.
- `fedkrso`, `fed3r`, `split`: without family.
- `beside`: what a job may have beside its method (buffered rounds, noise, masks), and what does not go together."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef

from fedcore.config.sections import HeadSection
from fedcore.errors import ConfigError
from fedcore.methods.fed3r import HeadStart
from fedcore.methods.interface import MethodSettings, ServerHalf
from fedcore.registry import METHODS, resolve

__all__ = ["AnySettings", "server_half", "settings_by_name", "settings_union"]


@functools.cache
def settings_by_name() -> dict[str, type[MethodSettings]]:
    """Settings of every registered method.

    Raises:
        ConfigError: A method's settings cannot be imported, or their tag is not its name.
    """
    found = {}
    for name, method in METHODS.close("a job was read"):
        kind = resolve(method.settings, place=f"method {name}")
        if kind.__struct_config__.tag != name:
            raise ConfigError(
                f"settings of method {name!r} have the tag {kind.__struct_config__.tag!r}",
                place=method.settings,
                remedy=f'write tag="{name}"',
            )
        found[name] = kind
    return found


def settings_union() -> Any:
    """The union of every registered method's settings, which msgspec reads a job's `[method]` with."""
    return functools.reduce(operator.or_, settings_by_name().values())


if TYPE_CHECKING:
    AnySettings = MethodSettings
else:
    # Built when msgspec first reads a job, as `fedcore.round.training.AnyTraining` is.
    AnySettings = Annotated[ForwardRef("settings_union()", module=__name__), "of every registered method"]
"""`[method]` of a job: its `name` says which."""


def server_half(settings: MethodSettings, artefact: str = "", head: HeadSection | None = None) -> ServerHalf:
    """The server half that a job names.

    Args:
        settings: `[method]` of the job.
        artefact: SHA-256 of the run's artefact, for a method that asks for one (`Training.artefact_kind`), once it
            is made.
        head: `[head]` of the job; None for a random head.
    """
    half = resolve(METHODS.get(settings.name).server_half, place=f"method {settings.name}")
    made: ServerHalf = half(settings, artefact) if artefact else half(settings)
    return HeadStart(made, head) if head is not None and head.start == "ridge" else made
