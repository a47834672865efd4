# SPDX-License-Identifier: Apache-2.0
"""Any bytes, wherever bytes are decoded: an error of our own or a value, in bounded time and memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutated
from tests.fuzz.samples import make_samples
from tests.fuzz.targets import TARGETS

SAMPLES = make_samples() | {"number": [b"17", b"-3\n"]}
CORPUS = Path(__file__).parent / "corpus"
# Samples are below 4 KB. What a decoder makes of as much, with the error, its traceback and a tokenised TOML file, is
# below this.
_MEMORY_BYTES = 3_000_000
_SECONDS = 2.0
quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What a decoder imports or builds on its first call is no input's cost."""
    for target, samples in SAMPLES.items():
        TARGETS[target](samples[0])


def take(target: str, data: bytes) -> bool:
    """Run a target within its limits of time and memory; whether it accepted the input."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        accepted = TARGETS[target](data)
    finally:
        took = time.thread_time() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert took < _SECONDS, f"{took:.1f} s for {len(data)} bytes"
    assert peak < _MEMORY_BYTES + 24 * len(data), f"{peak:,} bytes for {len(data)}"
    return accepted


def kept(target: str) -> list[bytes]:
    """The corpus of a target: one file, a msgpack list of inputs that together reach all the code that fuzzing
    reached."""
    path = CORPUS / f"{target}.bin"
    return msgspec.msgpack.decode(path.read_bytes(), type=list[bytes]) if path.exists() else []


@pytest.mark.parametrize("target", TARGETS)
def test_valid_input_is_taken(target: str) -> None:
    for data in SAMPLES[target]:
        assert take(target, data)


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_corpus_keeps_its_promises(target: str) -> None:
    for data in kept(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@quick
@given(data=st.binary(max_size=300))
def test_any_bytes(target: str, data: bytes) -> None:
    take(target, data)


@pytest.mark.parametrize("target", TARGETS)
@quick
@given(seed=st.integers(0, 2**32), choice=st.integers(0, 2**16))
def test_valid_input_with_something_wrong(target: str, seed: int, choice: int) -> None:
    samples = SAMPLES[target]
    take(target, mutated(samples[choice % len(samples)], samples, random.Random(seed)))
