# SPDX-License-Identifier: Apache-2.0
"""Heads from sums after the first: in which rounds a job has them, and what they do not go with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest
from head_jobs import BIAS, JOB, TASK, WEIGHT, read

from coordinator.run.going_on import ended_by_head
from coordinator.run.prepare import prepare
from coordinator.store.folder import RunFolder, stored_job, write_job
from coordinator.store.ledger import SqliteLedger
from fedcore.config.sections import HeadSection
from fedcore.errors import ConfigError
from fedcore.methods import server_half
from fedcore.methods.beside.heads import longer_head, require_heads_again
from fedcore.round.training import HeadTraining
from fedcore.weights.schema import ModelSchema
from fedcore.worker.messages import Described


def test_heads_again_end_a_run(tmp_path: Path) -> None:
    text = JOB.replace('"ridge"', '"ridge"\nagain = 2').replace("[round]\n", "[round]\nrounds = 7\n")
    job = read(tmp_path, text)
    assert job.phases == {1: "head", 4: "head", 7: "head"}
    halves = server_half(job.method, head=job.head)
    assert {n for n in range(1, 8) if isinstance(halves.training(n, 0), HeadTraining)} == set(job.phases)
    for rounds, remedy in ((8, "write 7 or 10"), (6, "write 4 or 7"), (3, "write 4"), (1, "write 4")):
        with pytest.raises(ConfigError, match=rf"round.rounds: a head comes after 2 each, and .* \({remedy}\)"):
            read(tmp_path, text.replace("rounds = 7", f"rounds = {rounds}"))


@pytest.mark.parametrize(
    ("rounds", "head", "beside", "heads"),
    [
        (5, "", "", {1, 5}),
        (4, "", "", {1}),
        (5, "again = 0", "", {1}),
        (3, 'again = "end"', "", {1, 3}),
        (7, "again = 1", "", {1, 3, 5, 7}),
        (7, "again = [3, 7]", "", {1, 3, 7}),
        (5, "", "average_last = 2", {1}),
        (5, "", 'kind = "buffered"\nbuffer_size = 3', {1}),
    ],
)
def test_a_run_ends_with_a_head_where_rounds_of_the_method_lie_before_it(
    tmp_path: Path, rounds: int, head: str, beside: str, heads: set[int]
) -> None:
    text = JOB.replace('"ridge"', f'"ridge"\n{head}')
    job = read(tmp_path, text.replace("[round]\n", f"[round]\nrounds = {rounds}\n{beside}\n"))
    (tmp_path / "schema.json").write_bytes(msgspec.json.encode(Described(ModelSchema((), (WEIGHT, BIAS)), TASK)))
    ledger = SqliteLedger(tmp_path / "ledger")
    folder = RunFolder(tmp_path)
    write_job(folder, job)
    try:
        assert set(prepare(job, tmp_path, folder, ledger).job.phases) == heads
        assert set(stored_job(tmp_path).phases) == heads, "whoever resumes it finds the same"
        if heads == {1, 5}:
            # A run from before there was this choice has the ledger's facts, and goes on as it began.
            assert set(prepare(job, tmp_path, folder, ledger).job.phases) == {1}
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("again", "done", "rounds", "heads"),
    [
        ((6,), 6, 9, (6, 9)),
        ((6,), 4, 9, (9,)),
        ((3, 6), 2, 9, (3, 9)),
        ((3, 6), 2, 3, (3,)),
        (2, 7, 10, 2),
        (0, 6, 9, 0),
        ("auto", 6, 9, "auto"),
    ],
)
def test_a_run_that_goes_on_keeps_its_heads_and_ends_as_it_was_to(
    again: int | tuple[int, ...] | Literal["auto"], done: int, rounds: int, heads: int | tuple[int, ...] | str
) -> None:
    head = HeadSection(start="ridge", again=again)
    longer = longer_head(head, done, 7 if again == 2 else 6, rounds)
    assert longer.again == heads
    require_heads_again(longer, rounds, buffered=False, averaged=False)


@pytest.mark.parametrize(
    ("again", "next_round", "heads", "rounds"),
    [
        ((9,), 5, (5,), 5),
        ((4, 9), 7, (4, 7), 7),
        (3, 7, (5, 7), 7),
        # The head that was to end the run is next.
        ((9,), 9, (9,), 9),
        ((9,), 10, None, 9),
        # The newest round is a head.
        ((4, 9), 5, None, 9),
        (3, 6, None, 9),
        (0, 5, None, 9),
    ],
)
def test_a_run_that_is_to_end_early_has_a_head_first_if_heads_end_it(
    again: int | tuple[int, ...], next_round: int, heads: tuple[int, ...] | None, rounds: int, tmp_path: Path
) -> None:
    text = '"ridge"\n[evaluation]\nsource = "dev.csv"\nstop_after = 2'
    job = read(tmp_path, JOB.replace('"ridge"', text).replace("[round]\n", "[round]\nrounds = 9\n"))
    job = msgspec.structs.replace(job, head=HeadSection(start="ridge", again=again))
    ended = ended_by_head(job, next_round)
    assert (ended is None) == (heads is None)
    if ended is not None:
        shorter = ended(job)
        assert (shorter.head.again, shorter.round.rounds) == (heads, rounds)
        require_heads_again(shorter.head, rounds, buffered=False, averaged=False)
        assert shorter.evaluation is not None and shorter.evaluation.stop_after == 0
        assert ended_by_head(shorter, rounds + 1) is None and job.evaluation and job.evaluation.stop_after == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"ridge"', '"ridge"\nagain = -1', r"head.again: again is -1"),
        (
            '"ridge"',
            '"ridge"\nagain = [1, 10]',
            r"head.again: again is \[1, 10\], and round 1 is the first head's \(write",
        ),
        ('"ridge"', '"ridge"\nagain = [5, 4]', r"head.again: again is \[5, 4\]"),
        ('"ridge"', '"ridge"\nagain = [5]', r"head.again: the last head is in round 5, and the run has .* \(have the"),
        ('"ridge"', '"ridge"\nagain = "ends"', r"head.again"),
        (
            'start = "ridge"\n[round]\n',
            'start = "ridge"\nagain = "end"\n[round]\nrounds = 2\n',
            r"round.rounds: the first round and the last are a head's, and of 2 none is left \(write 3 or more\)",
        ),
        ('"ridge"', '"auto"\nagain = "end"', r"head.again: again is end, and there is no head from sums \(add start"),
        ('"ridge"', '"random"\nagain = 2', r"head.again: again is 2, and there is no head from sums \(add start"),
        ("[round]\n", "[round]\nrounds = 7\naverage_last = 2\n", r"round.average_last: the mean of states with heads"),
        (
            "[round]\n",
            '[round]\nrounds = 7\nkind = "buffered"\nbuffer_size = 3\n',
            r"head.again: a head from sums is of one",
        ),
    ],
)
def test_what_heads_again_do_not_go_with_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = JOB if "again" in new else JOB.replace('"ridge"', '"ridge"\nagain = 2')
    with pytest.raises(ConfigError, match=words) as found:
        read(tmp_path, text.replace(old, new))
    assert "\n" not in found.value.one_line()
