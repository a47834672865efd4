# SPDX-License-Identifier: Apache-2.0
"""A method owns its words: what FedKRSO alone needs, the rest of the house does not name."""

from __future__ import annotations

import re

import pytest

from tests.house import FLOORS, ROOT

# A word of a method, and the files that are the method's own. Jobs, and so examples, choose its options by it.
OWNED = {
    "informed": (
        "fedcore/methods/fedkrso.py",
        "fedcore/round/training/subspace.py",
        "fedcore/subspaces/informed.py",
        "fedcore/subspaces/projection.py",
        "edge_client/worker/methods/fedkrso/half.py",
        "edge_client/worker/methods/fedkrso/principal.py",
    )
}


@pytest.mark.parametrize("word", OWNED)
def test_a_word_of_a_method_is_said_in_its_own_files_only(word: str) -> None:
    files = [
        path for floor in FLOORS if "/" not in floor and floor != "examples" for path in (ROOT / floor).rglob("*.py")
    ]
    said = {path.relative_to(ROOT).as_posix() for path in files if re.search(word, path.read_text(), re.IGNORECASE)}
    assert said == set(OWNED[word])
