# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of one target: `python tests/fuzz/run_atheris.py TARGET CORPUS [libFuzzer options]`; needs
the extra `fuzz`.

libFuzzer keeps in CORPUS what reached new code; `-merge=1 SMALL CORPUS` puts a minimal part of it into SMALL.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(
    include=["fedcore", "coordinator", "edge_client", "tomllib", "json"], enable_loader_override=False
):
    from tests.fuzz.mutations import mutated
    from tests.fuzz.samples import make_samples
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer's limits or a finding."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    samples = make_samples().get(name, [b"17"])
    for index, sample in enumerate(samples):
        (corpus / f"sample-{index}").write_bytes(sample)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return atheris.Mutate(data, max_size)
        return mutated(data, samples, chance)[:max_size]

    def crossed(first: bytes, second: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        return (first[: chance.randint(0, len(first))] + second[chance.randint(0, len(second)) :])[:max_size]

    def once(data: bytes) -> None:
        TARGETS[name](data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once, custom_mutator=mutate, custom_crossover=crossed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
