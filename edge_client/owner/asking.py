# SPDX-License-Identifier: Apache-2.0
"""How a device answers with a larger model behind it (`[ask]` in the node file)."""

from __future__ import annotations

import msgspec

from fedcore.config.sections import PathText
from fedcore.errors import ConfigError
from fedcore.wire.answers import MOST_CLUSTERS

__all__ = ["AskSection"]


class AskSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[ask]`: a small model answers here, and the coordinator's large one what the small one is unsure of."""

    model: PathText = ""
    """Folder of the small model: the large one's first blocks, with a head of their own."""
    cluster: int = 0
    """Whose answers this device reuses, and whose threshold it shares."""
    threshold: float | None = None
    """Uncertainty from which on it asks, 0 to 1, whatever the coordinator publishes. Left out: the published one, and
    until there is one everything is asked."""
    least_similarity: float = 0.97
    """Cosine from which on a peer's text counts as this one; above 1: peers' answers are not reused."""
    known_answers: int = 256
    """Peers' answers that are kept, the newest."""
    deadline_seconds: float = 5.0
    """How long the large model is waited for; then the small one's answer counts, and is marked."""
    cost: float = 0.1
    """What asking may cost, as a chance of another answer: it asks where the small model's is beyond it."""
    softness: float = 0.05
    """Width of the step that stands for the threshold while it is learned."""
    learn_every: int = 200
    """Texts after which this device says what threshold it would choose; 0: never."""

    def __post_init__(self) -> None:
        limits = {
            "cluster": (0, MOST_CLUSTERS - 1),
            "threshold": (0, 1),
            "least_similarity": (0, 2),
            "known_answers": (0, 100_000),
            "deadline_seconds": (0.01, 3600),
            "cost": (0, 1),
            "softness": (0.001, 1),
            "learn_every": (0, 2**20),
        }
        for key, (least, most) in limits.items():
            value = getattr(self, key)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{key} is {value:g}, it must be {least:g} to {most:g}", place=f"ask.{key}")
