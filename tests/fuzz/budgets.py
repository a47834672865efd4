# SPDX-License-Identifier: Apache-2.0
"""A budget of time and memory for bytes that claim more than they hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fuzz.samples import make_samples

SAMPLES = make_samples()


@contextmanager
def at_most(limit_bytes: int) -> Iterator[None]:
    """The block's peak of memory stays below a limit."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes, f"{peak:,} bytes"
