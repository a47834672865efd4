# SPDX-License-Identifier: Apache-2.0
"""`fedkrso runs list|show|export|compare`: what they say of finished, killed and foreign folders, and what other
programs read."""

from __future__ import annotations

import csv
import io
import json
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from made_runs import fedkrso, finished_run, killed_run, make_run, running_run

from benchmarks.fleet import node_names, prepared
from benchmarks.fleet_row import Load
from coordinator.provisioning.broker import LocalBroker
from coordinator.reports.compare import compare
from coordinator.reports.objects import ROUND_COLUMNS, round_objects
from coordinator.reports.runs import read_run, scan
from fedcore.methods.fedkrso import FedKRSOSettings


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    finished_run(folder, "pool", [0.4, None, 0.8, 0.75], started_at=1_800_000_000.0)
    finished_run(
        folder,
        "fresh",
        [0.5, 0.6, 0.7],
        started_at=1_800_000_500.0,
        up=3_000_000,
        method=FedKRSOSettings(schedule="fresh", rank=4),
    )
    (folder / "pool-nodes").mkdir()
    return folder


def test_list_names_every_run_and_what_is_none(runs: Path) -> None:
    killed_run(runs, "killed", started_at=1_800_000_900.0)
    with running_run(runs, "live", started_at=1_800_001_000.0):
        said, found = (
            fedkrso("runs", "list", "--runs", runs),
            json.loads(fedkrso("runs", "list", "--runs", runs, "--json").stdout),
        )
    assert said.returncode == 0 and [line.split()[0] for line in said.stdout.splitlines()] == [
        "run",
        "live",
        "killed",
        "fresh",
        "pool",
        "skipped",
    ]
    assert "skipped pool-nodes: no run: neither job.json nor ledger.sqlite" in said.stdout
    by_name = {run["run"]: run for run in found["runs"]}
    assert [run["state"] for run in found["runs"]] == ["running", "stopped", "finished", "finished"]
    assert (by_name["pool"]["last_accuracy"], by_name["pool"]["best_accuracy"], by_name["pool"]["rounds"]) == (
        0.75,
        0.8,
        4,
    )
    assert (
        by_name["killed"]["rounds"] == 3
        and by_name["killed"]["total_rounds"] == 6
        and by_name["fresh"]["uplink_bytes"] == 9_000_000
    )
    assert by_name["pool"]["folder_bytes"] > 10_000 and by_name["pool"]["nodes"] == 2
    assert found["skipped"] == [{"folder": "pool-nodes", "why": "no run: neither job.json nor ledger.sqlite"}]


def test_an_empty_folder_and_none_at_all(tmp_path: Path) -> None:
    assert fedkrso("runs", "list", "--runs", tmp_path).stdout.startswith("no runs in ")
    wrong = fedkrso("runs", "list", "--runs", tmp_path / "nowhere")
    assert wrong.returncode == 10 and "there is no such folder (--runs FOLDER" in wrong.stderr


def test_show_says_who_was_refused_and_why_also_of_a_killed_run(runs: Path) -> None:
    killed_run(runs, "killed")
    for name in ("pool", "killed"):
        text = fedkrso("runs", "show", name, "--runs", runs).stdout
        assert "refused home-0: late: round 2 is over (2)" in text
        assert "clipped home-0: round 2: norm 1.5, scaled by 0.5 to the bound of 0.75" in text
        assert "rank 16, 5 seeds (pool), 40 steps, 4 bits" in text and "very secret" not in text
        found = json.loads(fedkrso("runs", "show", name, "--runs", runs, "--json").stdout)
        assert [(reason["kind"], reason["times"]) for reason in found["reasons"]] == [("refused", 2), ("clipped", 1)]
        assert (
            found["nodes"][0]["refused"] == 2
            and found["nodes"][0]["largest_norm"] == 1.5
            and found["nodes"][1]["refused"] == 0
        )
    assert (
        found["state"] == "stopped" and "coordinator resume killed" in found["why"] and found["published_rounds"] == 3
    )
    wrong = fedkrso("runs", "show", "pol", "--runs", runs)
    assert wrong.returncode == 10 and "did you mean 'pool'?" in wrong.stderr


def test_exports_have_one_row_a_round_and_names_that_stay(runs: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(fedkrso("runs", "export", "pool", "--runs", runs).stdout)))
    assert list(rows[0]) == [*ROUND_COLUMNS, "metric_f1"]
    assert [row["accuracy"] for row in rows] == ["0.4", "", "0.8", "0.75"], "not measured is empty, not zero"
    assert [int(row["uplink_bytes_total"]) for row in rows] == [1_500_000, 3_000_000, 4_500_000, 6_000_000]
    assert (
        float(rows[-1]["seconds_total"]) == 11 + 12 + 13 + 14
        and rows[1]["clipped"] == "1"
        and rows[0]["nodes"] == "home-0;home-1"
    )
    whole = json.loads(fedkrso("runs", "export", "pool", "--runs", runs, "--format", "json").stdout)
    lines = [
        json.loads(line)
        for line in fedkrso("runs", "export", "pool", "--runs", runs, "--format", "jsonl").stdout.splitlines()
    ]
    assert whole == lines == round_objects(read_run(runs / "pool")) and whole[1]["accuracy"] is None


def test_an_export_of_no_rounds_has_its_columns(runs: Path) -> None:
    make_run(runs, "young")
    assert fedkrso("runs", "export", "young", "--runs", runs).stdout == ",".join(ROUND_COLUMNS) + "\n"
    assert fedkrso("runs", "export", "young", "--runs", runs, "--format", "json").stdout == "[]\n"


def test_export_to_a_file_by_its_ending(runs: Path, tmp_path: Path) -> None:
    for name, first in (("a.csv", "run,round"), ("a.json", "["), ("a.jsonl", '{"run"'), ("a.txt", "run,round")):
        assert (
            fedkrso("runs", "export", "pool", "--runs", runs, "--out", tmp_path / name).stdout
            == f"{tmp_path / name}: 4 rounds\n"
        )
        assert (tmp_path / name).read_text().startswith(first)
    wrong = fedkrso("runs", "export", "pool", "--runs", runs, "--out", tmp_path / "no" / "a.csv")
    assert wrong.returncode == 2 and "a.csv: cannot be written: No such file or directory" in wrong.stderr
    assert not list(tmp_path.glob("*.new"))


def test_runs_at_equal_rounds_megabytes_and_seconds(runs: Path) -> None:
    found = compare([read_run(runs / name) for name in ("pool", "fresh")])
    assert found.by_round == [(1, [0.4, 0.5]), (2, [None, 0.6]), (3, [0.8, 0.7]), (4, [0.75, None])]
    (paired,) = found.paired
    assert (paired["run"], paired["rounds"]) == ("B", 2)
    # Only rounds that both have measured: 1 and 3.
    assert [round(paired[key], 6) for key in ("mean", "least", "largest", "last")] == [0.0, -0.1, 0.1, -0.1]
    # 1.5 MB a round against 3: after 6 MB one has four rounds, the other two.
    assert dict(found.by_megabytes)[6.0] == [0.75, 0.6] and dict(found.by_megabytes)[1.5] == [0.4, None]
    assert dict(found.by_seconds)[36.0] == [0.8, 0.7]
    assert found.jobs == [
        ("method.rank", ["16", "4"]),
        ("method.schedule", ["pool", "fresh"]),
        ("round.rounds", ["4", "3"]),
    ]


def test_compare_in_the_terminal_and_as_json(runs: Path) -> None:
    said = fedkrso("runs", "compare", "pool", "fresh", "pool", "--runs", runs)
    assert (
        said.returncode == 0
        and "B against A, 2 equal rounds: mean +0.000, least -0.100, largest +0.100, last -0.100" in said.stdout
    )
    assert "method.schedule     pool  fresh  pool" in said.stdout and "secret" not in said.stdout
    found = json.loads(fedkrso("runs", "compare", "pool", "fresh", "--runs", runs, "--json").stdout)
    assert [curve["name"] for curve in found["curves"]] == ["pool", "fresh"]
    alone = fedkrso("runs", "compare", "pool", "--runs", runs)
    assert alone.returncode == 2 and "one run cannot be compared (name two or more)" in alone.stderr
    wrong = fedkrso("runs", "compare", "pool", "frsh", "--runs", runs)
    assert wrong.returncode == 10 and "did you mean 'fresh'?" in wrong.stderr


def test_runs_in_which_nothing_was_measured(runs: Path) -> None:
    finished_run(runs, "blind", [None, None])
    said = fedkrso("runs", "compare", "blind", "pool", "--runs", runs)
    assert said.returncode == 0 and "B against A: no round that both have measured" in said.stdout


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attributes if name in ("src", "href") and not (value or "").startswith("#")
        ]


def test_the_page_needs_nothing_else_and_takes_no_run_s_words_for_tags(runs: Path, tmp_path: Path) -> None:
    finished_run(runs, "copied", [0.5, 0.6])
    (runs / "copied").rename(runs / "<script>$x$ alert")
    page = tmp_path / "compare.html"
    said = fedkrso("runs", "compare", "pool", "fresh", "<script>$x$ alert", "--runs", runs, "--out", page)
    assert said.returncode == 0 and f"page: {page}" in said.stdout
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.tags.count("svg") == 3 and "script" not in tags.tags and tags.links == []
    assert "&lt;script&gt;$x$ alert" in page.read_text() and "B against A" in page.read_text()


def test_looking_at_a_run_again_and_again_changes_nothing_in_it(tmp_path: Path) -> None:
    """A real coordinator with simulated nodes, while its ledger and its view are read without a pause."""
    needs_mosquitto()
    users = ("coordinator", *node_names(6))
    stop, looks, states, failed = threading.Event(), [0], set(), list[BaseException]()

    def look() -> None:
        while not stop.is_set():
            try:
                for record in scan(tmp_path)[0]:
                    states.add((record.state, record.view.phase))
                    round_objects(record)
                    looks[0] += 1
            except BaseException as error:  # noqa: BLE001 (told below)
                failed.append(error)
            stop.wait(0.01)

    watcher = threading.Thread(target=look)
    with (
        LocalBroker(tmp_path / "broker", users, kind="mosquitto", tls=True, run="fleet") as broker,
        prepared(Load(6, 3, train_seconds=0.2), tmp_path, broker) as fleet,
    ):
        watcher.start()
        try:
            row = fleet.run(900.0)
        finally:
            stop.set()
            watcher.join()
        record = read_run(tmp_path / "fleet")
        lines = [json.loads(line) for line in (tmp_path / "events.log").read_text().splitlines()]
    assert not failed and looks[0] > 20, failed[:1]
    assert row["exactly_once"] and row["nodes_with_the_digest"] == 6, "the digest is the one that the seeds give"
    assert sum(state == "running" for state, _ in states) > 1, "it was looked at while it ran, in more than one phase"
    assert record.state == "finished" and len(record.rows) == 3
    # Its log: one object a line, the summary last.
    assert {"time", "level", "run", "round", "node", "event", "message"} <= lines[0].keys() and "nodes" in lines[-1]
    told = [line["event"] for line in lines[:-1]]
    assert told.count("round_opened") == 3 and told.count("update_accepted") == 18 and told[-1] == "run_finished"
