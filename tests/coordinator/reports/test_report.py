# SPDX-License-Identifier: Apache-2.0
"""A run's page tells in its first lines what was learned by whom, what to compare it with, and what to do next."""

from __future__ import annotations

import contextlib
import html
import re
import shlex
from pathlib import Path

import pytest
from made_runs import fedkrso, make_run

from coordinator.reports.summary import about, summary_of, write_report
from coordinator.store.folder import stored_job
from coordinator.store.ledger import SqliteLedger
from coordinator.store.view import RunView


def page(runs: Path, view: RunView, trivial: float | None = 0.55) -> str:
    with contextlib.closing(SqliteLedger(runs / view.run / "ledger.sqlite")) as ledger:
        if trivial is not None:
            ledger.put_fact("trivial", trivial)
        told = about(stored_job(runs / view.run), ledger, view.rows, runs)
    write_report(runs / "report.html", summary_of(view, about=told))
    return (runs / "report.html").read_text(encoding="utf-8")


def words(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", text, flags=re.S)).split())


def test_the_first_lines_say_what_was_learned_and_what_it_compares_with(tmp_path: Path) -> None:
    view = make_run(tmp_path, "voice", (0.7, 0.8))
    view.phases = {1: "head"}
    text = page(tmp_path, view)
    said = words(text)
    assert "2 nodes tuned small together: text-classification with 2 labels. The text stayed where it was" in said
    assert "3.0 MB of updates travelled up, and 6.0 MB of states down" in said
    assert "Begun 15 January 2027, 08:00 UTC; fedkrso, 2 rounds, 23 s in them" in said
    assert "0.800 held-out accuracy 0.550 one label for every row 0.700 frozen features (round 1)" in said
    assert "prefers-color-scheme: dark" in text
    # What is in a table is explained below it, and what is nowhere has no column.
    assert "is clipped, that is, scaled down" in said and ">clipped<" in text and "capped" not in said.lower()
    assert "500.0 of 1024.0" in said and "megabytes at" not in text


def test_what_to_do_next_are_commands_that_there_are(tmp_path: Path) -> None:
    text = page(tmp_path, make_run(tmp_path, "voice", (0.7, 0.8)))
    commands = [html.unescape(one) for one in re.findall(r"<code>(fedkrso [^<]*)</code>", text)]
    assert [one.split()[1:3] for one in commands] == [
        ["try", "voice"],
        ["coordinator", "export"],
        ["coordinator", "resume"],
    ]
    for command in commands:
        _, *arguments = shlex.split(command)
        assert str(tmp_path) in arguments, "another folder of runs than the usual one"
        done = fedkrso(*arguments, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout, command


@pytest.mark.parametrize(
    ("phases", "more"), [({}, "--rounds 8 adds 4 rounds"), ({1: "head", 4: "head"}, "--rounds 7 adds 3 rounds")]
)
def test_more_rounds_of_a_run_with_heads_again_end_with_one(tmp_path: Path, phases: dict[int, str], more: str) -> None:
    view = make_run(tmp_path, "voice", (0.7, 0.8, 0.8, 0.9))
    view.phases = phases
    assert more in words(page(tmp_path, view)).replace(f" --runs '{tmp_path}'", "").replace(f" --runs {tmp_path}", "")


@pytest.mark.parametrize("trivial", [None, 0.0])
def test_a_run_without_a_measurement_has_a_page_too(tmp_path: Path, trivial: float | None) -> None:
    said = words(page(tmp_path, make_run(tmp_path, "bare", ()), trivial))
    assert ("one label for every row" in said) == (trivial is not None)
    write_report(tmp_path / "older.html", summary_of(make_run(tmp_path, "older", (0.7,))))
    assert "held-out accuracy" in (tmp_path / "older.html").read_text(encoding="utf-8")
