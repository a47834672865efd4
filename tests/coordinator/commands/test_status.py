# SPDX-License-Identifier: Apache-2.0
"""`fedkrso status` and `fedkrso nodes`: what is on the screen, in every terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from made_runs import MIB, fedkrso, finished_run, killed_run, make_run, node, running_run
from rich.cells import cell_len
from rich.console import Console

from coordinator.reports.nodes import natural, node_rows
from coordinator.reports.objects import round_objects
from coordinator.reports.runs import read_run
from coordinator.store.rows import PrivacySpent
from coordinator.store.view import EventView, RunView
from coordinator.terminal.page import nodes_page, status_page
from fedcore.device.readings import Readings

NASTY = "gone\x1b[2J\x1b[31mred\n[bold]not markup[/bold] :smile:"


def fleet() -> RunView:
    view = RunView("r", "fedkrso", 6, phase="open", round=3, digest="ab" * 32, excluded=("n6",))
    view.rows = []
    view.nodes = {
        "n1": node("n1", digest="ab" * 32),
        "n2": node("n2", online=False, state="lost"),
        "n3": node("n3", trouble="version 2 is aaaa, not bbbb: resynchronising"),
        "n4": node("n4", worker_bytes=980 * MIB),
        "n5": node("n5", reason="too hot: 81 C", state="resting", readings=None),
        "n6": node("n6", trouble="excluded nodes are somebody's decision"),
        "n10": node(
            "n10",
            readings=Readings(throttled=True, throttle_reason="under-voltage", temperatures_celsius={"soc": 88.0}),
        ),
    }
    return view


def rendered(body: object, width: int, *, encoding: str = "utf-8") -> list[str]:
    console = Console(width=width, force_terminal=False, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(body)
    return capture.get().splitlines()


def test_who_needs_attention_and_why() -> None:
    rows = {row.view.node: row for row in node_rows(fleet())}
    assert {name: row.notes for name, row in rows.items() if row.notes} == {
        "n2": ("offline",),
        "n3": ("version 2 is aaaa, not bbbb: resynchronising",),
        "n4": ("99% of the budget",),
        "n5": ("too hot: 81 C",),
        "n10": ("throttled: under-voltage",),
    }
    assert [row.view.node for row in node_rows(fleet(), attention_only=True)] == ["n2", "n3", "n4", "n5", "n10"]
    assert (
        rows["n1"].activity == "training 12/60"
        and rows["n6"].activity == "excluded"
        and rows["n2"].activity == "offline"
    )


def test_nobody_is_missed_who_left_a_finished_run() -> None:
    view = fleet()
    view.phase = "finished"
    assert "n2" not in [row.view.node for row in node_rows(view, attention_only=True)]


@pytest.mark.parametrize(
    ("sort", "first"),
    [("name", "n1"), ("state", "n2"), ("memory", "n4"), ("temperature", "n10"), ("power", "n1"), ("seen", "n1")],
)
def test_sorting(sort: str, first: str) -> None:
    rows = node_rows(fleet(), sort=sort)
    assert rows[0].view.node == first and len(rows) == 7


def test_numbers_in_names_are_numbers() -> None:
    assert sorted(["n10", "n2", "n", "10", "9"], key=natural) == ["9", "10", "n", "n2", "n10"]
    assert natural("²" * 3) and natural("9" * 5000), "digits of other scripts and endless ones are no error"


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [40, 80, 140])
def test_pages_fit_their_terminal_and_strangers_words_are_only_words(
    tmp_path: Path, width: int, ascii_only: bool
) -> None:
    make_run(tmp_path, "r", [0.2, 0.9, 0.5])
    with running_run(tmp_path, "live") as (view, picture):
        view.nodes |= fleet().nodes
        view.nodes["n5"].reason = view.nodes["n5"].device = view.nodes["n5"].state = NASTY
        view.events = [EventView(time.time(), "declined", "n5", 3, NASTY * 20)]
        view.security = NASTY
        picture.show(view)
        record = read_run(tmp_path / "live")
        record.view.nodes, record.view.events, record.view.security = view.nodes, view.events, view.security
    for body in (
        status_page(record, time.time(), width=width, ascii_only=ascii_only),
        nodes_page(record, node_rows(record.view), time.time(), width=width, ascii_only=ascii_only),
    ):
        lines = rendered(body, width)
        assert max(cell_len(line) for line in lines) <= width
        text = "\n".join(lines)
        assert "\x1b" not in text and "gone?" in text
        assert not any(c in text for c in "█▁") if ascii_only else width < 80 or "█" in text or "▁" in text
    assert width < 140 or "[bold]not markup[/bold]" in text


def test_memory_is_a_bar_against_the_budget(tmp_path: Path) -> None:
    make_run(tmp_path, "r")
    record = read_run(tmp_path / "r")
    record.view.nodes = {"n4": node("n4", worker_bytes=477 * MIB)}
    text = "\n".join(rendered(nodes_page(record, node_rows(record.view), 0.0, width=140, ascii_only=True), 140))
    assert "####.... 512/1024 MiB" in text and "52 C" in text and "7.2 W" in text and "Jetson Orin Nano" in text


def test_the_truth_about_a_finished_a_killed_and_an_unborn_run(tmp_path: Path) -> None:
    finished_run(tmp_path, "done")
    killed_run(tmp_path, "killed")
    make_run(tmp_path, "unborn")
    (tmp_path / "unborn" / "ledger.sqlite").unlink()
    first = {
        name: fedkrso("status", name, "--runs", tmp_path).stdout.splitlines()[0]
        for name in ("done", "killed", "unborn")
    }
    assert first["done"] == "done  fedkrso  finished"
    assert first["killed"].startswith("killed  fedkrso  stopped: its coordinator (process ")
    assert first["unborn"].startswith("unborn  fedkrso  stopped: never started")
    wrong = fedkrso("status", "doen", "--runs", tmp_path)
    assert wrong.returncode == 10 and "did you mean 'done'?" in wrong.stderr and wrong.stdout == ""
    many = fedkrso("status", "--runs", tmp_path)
    assert many.returncode == 2 and "which run? none is running" in many.stderr
    flag = fedkrso("nodes", "done", "--runs", tmp_path, "--sort", "colour")
    assert flag.returncode == 2 and "'temperature'" in flag.stderr and "Traceback" not in flag.stderr


def test_json_is_for_machines(tmp_path: Path) -> None:
    with running_run(tmp_path, "live"):
        found = json.loads(fedkrso("status", "--runs", tmp_path, "--json").stdout)
        nodes = json.loads(fedkrso("nodes", "--runs", tmp_path, "--json", "--only", "attention").stdout)
        every = json.loads(fedkrso("nodes", "--runs", tmp_path, "--json").stdout)
    assert (found["state"], found["phase"], found["round"], found["published_rounds"]) == ("running", "open", 3, 2)
    assert found["accuracy_by_round"] == {"1": 0.4, "2": 0.6} and found["age_seconds"] < 30
    assert (
        found["invited"] == ["home-0", "home-1"]
        and found["accepted"] == ["home-0"]
        and found["events"][0]["kind"] == "declined"
    )
    assert "very secret" not in json.dumps(found)
    assert nodes["nodes"] == [] and [each["node"] for each in every["nodes"]] == ["home-0", "home-1"]
    assert every["nodes"][0]["used_bytes"] == 435 * MIB and every["nodes"][0]["readings"]["power_watts"] == 7.25


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_a_terminal(tmp_path: Path, encoding: str) -> None:
    with running_run(tmp_path, "live") as (view, picture):
        view.events.append(EventView(time.time(), "declined", "home-1", 3, "zu heiß: 81 °C ☃"))
        picture._next_at = 0.0
        picture.show(view)
        command = [sys.executable, "-c", "from fedcore.command import main; main()", "status", "--runs", str(tmp_path)]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, timeout=300, env=environment, stdin=subprocess.DEVNULL)
    text = done.stdout.decode(encoding)
    assert done.returncode == 0 and not done.stderr
    assert {"ascii": "zu hei?: 81 ?C ?", "latin-1": "zu heiß: 81 °C ?", "utf-8": "zu heiß: 81 °C ☃"}[encoding] in text


def test_help_shows_an_example() -> None:
    for command in (["status"], ["nodes"], ["runs", "list"], ["runs", "show"], ["runs", "export"], ["runs", "compare"]):
        text = fedkrso(*command, "--help").stdout
        assert "Example" in text and f"fedkrso {' '.join(command)}" in text
        assert max(map(len, text.splitlines())) <= 80


def test_what_has_been_spent_of_privacy_is_on_the_page(tmp_path: Path) -> None:
    finished_run(tmp_path, "done")
    record = read_run(tmp_path / "done")
    spent = PrivacySpent(
        level="example", epsilon=4.567, delta=1e-4, target_epsilon=5.0, clip=0.5, noise_multiplier=1.25, releases=9
    )
    record.view.rows = [*record.rows[:-1], msgspec.structs.replace(record.rows[-1], privacy=spent)]
    page = "\n".join(rendered(status_page(record, time.time(), width=200, ascii_only=False), 200))
    assert "each example: epsilon 4.57 of 5 spent at delta 0.0001, by noise of 1.25 times a clip of 0.5" in page
    assert round_objects(record)[-1]["epsilon"] == 4.567 and round_objects(record)[0]["epsilon"] is None
