# SPDX-License-Identifier: Apache-2.0
"""How long the machines are tried with sequences of events."""

from __future__ import annotations

from hypothesis import Phase, settings

# No shrinking: it takes minutes, and a machine tells its own story.
quick = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
