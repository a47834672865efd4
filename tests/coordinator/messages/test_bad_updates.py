# SPDX-License-Identifier: Apache-2.0
"""Bad updates against the real coordinator: refused with a reason and the sender's name, and the published state is as
if they had not come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest

from coordinator.job import SafetySection
from coordinator.reports.summary import summary_of, write_report
from coordinator.store.ledger import UpdateRow
from fedcore.model.update import write_update
from fedcore.numbers.accumulator import RowScaled, quantise_rows
from fedcore.numbers.records import Record, pack_record
from fedcore.round.header import UpdateHeader
from tests.coordinator.messages.one_round import HONEST, Run, Write, good, measured, records


def with_header(**changes: object) -> Write:
    return lambda path, header: write_update(path, msgspec.structs.replace(header, **changes), records(9))


def with_records(content: Iterable[Record]) -> Write:
    return lambda path, header: write_update(path, header, content)


def with_bytes(change: Callable[[bytes], bytes]) -> Write:
    def write(path: Path, header: UpdateHeader) -> None:
        write_update(path, header, records(9))
        path.write_bytes(change(path.read_bytes()))

    return write


def with_field(key: str, value: object) -> Write:
    def write(path: Path, header: UpdateHeader) -> None:
        first, second = map(pack_record, records(9))
        path.write_bytes(
            b"".join(map(msgpack.packb, [msgspec.to_builtins(header), {**first, key: value}, second, {"end": 2}]))
        )

    return write


def scaled(number: int, exponent: int) -> Record:
    return Record("l", RowScaled(np.full((6, 8), number, np.int16), np.full(6, exponent, np.int8)), 8)


# Sender -> what it sends, and what the event log must say about it.
BAD: Mapping[str, tuple[Write, str]] = {
    "loss-nan": (with_header(loss=float("nan")), "loss"),
    "seconds-inf": (with_header(seconds=float("inf")), "seconds"),
    "examples-none": (with_header(examples=0), "0 examples is outside"),
    "examples-many": (with_header(examples=2**24), "16777216 examples is outside"),
    "rank": (with_header(rank=3), "rank 3 is outside"),
    "subspaces": (with_header(subspaces=(0, 7)), "not distinct indices of 2 seeds"),
    "old-version": (with_header(version=3), "version is 3 where the plan has 0"),
    "in-the-name-of": (with_header(node="good-1"), "node is 'good-1' where the plan has 'in-the-name-of'"),
    "measured-unasked": (with_header(measured=measured(8, 8)), "a measurement that the plan did not ask for"),
    "shape": (
        with_records([scaled(1, -20), Record("head", quantise_rows(np.ones((4, 3), np.float32), 16), 16)]),
        "head: 4x3",
    ),
    "foreign": (
        with_records([*records(9), Record("other", records(9)[0].part, 8)]),
        "other: a tensor that the plan does not have",
    ),
    "twice": (with_records([*records(9), *records(9)]), "l: a tensor that the plan does not have, or twice"),
    "missing": (with_records(records(9)[:1]), "1 tensors are missing, first head"),
    "beyond-the-sum": (with_records([scaled(127, 1), *records(9)[1:]]), "l: a value beyond 128"),
    "exponent-high": (with_records([scaled(0, 127), *records(9)[1:]]), "exponent"),
    "exponent-low": (with_records([scaled(1, -33), *records(9)[1:]]), "exponent"),
    "bits": (with_field("bits", 8.0), "fields of the wrong type"),
    "a-bomb": (with_field("rows", 2**26), "outside the limits"),
    "truncated": (with_bytes(lambda raw: raw[:-9]), "cut short"),
    "longer": (with_bytes(lambda raw: raw + b"\x80"), "behind the end marker"),
    "garbage": (with_bytes(lambda raw: bytes(reversed(raw))), "not an update"),
    "empty": (with_bytes(lambda raw: b""), "not an update"),
    "too-long": (good(9, size=5.0), "is beyond the bound of 1"),
}


@pytest.fixture
def make_run(tmp_path: Path) -> Iterable[Callable[[str], Run]]:
    made: list[Run] = []

    def make(name: str) -> Run:
        made.append(Run(tmp_path / name))
        return made[-1]

    yield make
    for run in made:
        run.ledger.close()


BOUND = SafetySection(norm_bound=1.0, norm_policy="refuse")


def test_every_bad_update_is_refused_by_name_and_the_published_state_is_as_without_it(
    make_run: Callable[[str], Run], tmp_path: Path
) -> None:
    alone, beset = make_run("alone"), make_run("beset")
    assert set(alone.go(HONEST, BOUND).values()) == {""}
    # Bad ones first: nobody waits for those refused, so the round closes with the second good one.
    answers = beset.go({name: write for name, (write, _) in BAD.items()} | HONEST, BOUND)
    log = beset.said("refused")
    for name, (_, reason) in BAD.items():
        assert answers[name] == log[name], name
        assert log[name].startswith(f"{name}: ") and reason in log[name], log[name]
    assert log.keys() == BAD.keys() and answers["good-1"] == answers["good-2"] == ""
    assert beset.view.digest == alone.view.digest and len(alone.view.digest) == 64
    assert beset.view.rows[0].participants == ("good-1", "good-2")
    assert [row.header.node for row in beset.ledger.updates(1)] == ["good-1", "good-2"]
    # Nothing of a refused update stays behind.
    assert sorted(path.name for path in beset.files.update(1, "x").parent.iterdir()) == ["good-1.bin", "good-2.bin"]
    summary = summary_of(beset.view, beset.ledger.counts("refused"))
    assert {name: node["refused"] for name, node in summary["nodes"].items()} == {
        **dict.fromkeys(BAD, 1),
        "good-1": 0,
        "good-2": 0,
    }
    write_report(tmp_path / "report.html", summary)
    assert "a-bomb" in (tmp_path / "report.html").read_text()


def test_by_default_one_huge_update_that_claims_millions_weighs_half_and_is_named(
    make_run: Callable[[str], Run],
) -> None:
    run = make_run("run")
    sends = {**HONEST, "good-3": good(8), "liar": good(3, size=0.64, examples=2_000_000)}
    assert set(run.go(sends, SafetySection()).values()) == {""}
    row = run.ledger.rounds()[0]
    assert list(row.clipped) == ["liar"] and row.capped == {"liar": (2_000_000, 150)}
    assert row.norms["liar"] * row.clipped["liar"] <= 10 * sorted(row.norms.values())[1]
    assert run.said("outlier").keys() == {"liar"} and "where the median is" in run.said("outlier")["liar"]


def test_a_clipped_update_and_a_capped_share_are_in_log_and_summary(make_run: Callable[[str], Run]) -> None:
    run = make_run("run")
    sends = {**HONEST, "liar": good(3, examples=1_000_000), "loud": good(4, size=5.0)}
    limits = SafetySection(norm_bound=1.0, norm_ratio=0, max_share_ratio=3.0)
    assert set(run.go(sends, limits).values()) == {""}
    loud = {row.header.node: row for row in run.ledger.updates(1)}["loud"]
    assert loud.clip is not None and loud.norm is not None and loud.norm * loud.clip.factor <= 1.0
    assert run.said("clipped") == {
        "loud": f"round 1: norm {loud.norm:.6g}, scaled by {loud.clip.factor:.6g} to the bound of 1"
    }
    assert run.said("capped") == {"liar": "round 1: 1000000 examples count as 150, at most 150 may"}
    summary = summary_of(run.view)
    row = summary["rounds"][0]
    assert row["clipped"] == {"loud": loud.clip.factor} and row["capped"] == {
        "liar": {"examples": 1_000_000, "weight": 150}
    }
    assert row["norms"].keys() == sends.keys() and summary["nodes"]["loud"]["largest_norm"] == loud.norm
    assert [summary["nodes"][n]["rounds_clipped"] for n in ("good-1", "loud")] == [0, 1]


def test_a_resumed_coordinator_clips_as_the_killed_one_chose(make_run: Callable[[str], Run]) -> None:
    through, broken = make_run("through"), make_run("broken")
    sends = {"loud": good(4, size=5.0), **HONEST}
    through.go(sends, SafetySection(norm_bound=1.0))
    broken.go({"loud": sends["loud"]}, SafetySection(norm_bound=1.0), idle=HONEST, die=True)
    first = broken.ledger.updates(1)
    # Another bound in its second life changes nothing about what was accepted in the first.
    broken.go(HONEST, SafetySection(norm_bound=5.0), idle=["loud"])
    assert broken.ledger.updates(1)[-1:] == first and first[0].clip is not None
    assert broken.view.digest == through.view.digest


def test_rows_of_a_ledger_from_before_norms_still_decode(tmp_path: Path) -> None:
    header = UpdateHeader(
        run="r", round=1, node="a", version=0, examples=3, rank=8, subspaces=(0,), loss=1.0, seconds=1.0
    )
    old = {"transfer": "1-x", "file": "f", "size_bytes": 10, "header": msgspec.to_builtins(header)}
    row = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=UpdateRow)
    assert row == UpdateRow("1-x", "f", 10, header) and row.norm is None and row.clip is None
