# SPDX-License-Identifier: Apache-2.0
"""The comparison of all methods: what it asks for, what it keeps and what it says; no run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

import benchmarks.comparison.__main__ as comparison
from benchmarks.comparison.cells import HEAD_AT_END, RATES_SPLIT, Cell, Cells, cell_of
from benchmarks.comparison.methods import COMPARED, FROZEN, FULL, Compared
from benchmarks.comparison.runner import Runner
from benchmarks.comparison.systems import SYSTEMS
from benchmarks.comparison.tables import costs, curve, paired, results, searched
from research.planning import planned, planned_tuning
from research.runner import Job
from research.runs.rates import Rate, Rates, Tried
from research.runs.rows import Setup
from tests.research.paper_runs import predictions, row, setup, write_run


def cell(method: str, seed: int = 0, held: float = 0.8, split: str = RATES_SPLIT, **changes: object) -> Cell:
    fields = {
        "learning_rate": 1e-3,
        "tried": ("0.0003:0.7", "0.001:0.8"),
        "rounds": (2, 4),
        "held": (held - 0.05, held),
        "dev": (held - 0.1, held - 0.02),
        "own": (held, held + 0.1),
        "up": (0.5, 1.0),
        "down": (1.0, 2.0),
        "seconds": (10.0, 20.5),
        **changes,
    }
    return Cell(task="sst2", split=split, method=method, seed=seed, **fields)  # type: ignore[arg-type]


def test_what_is_kept_is_read_again_and_newer_runs_take_the_place_of_older(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    cells = Cells(path)
    for one in (cell("b", 1), cell("b", 0), cell("a", tried=(), own=()), cell("b", 0, 0.9)):
        cells.add(one)
    again = list(Cells(path))
    assert again == [cell("a", tried=(), own=()), cell("b", 0, 0.9), cell("b", 1)]
    assert again[1].key in Cells(path) and ("sst2", RATES_SPLIT, "c", 0) not in Cells(path)
    assert again[1].rate("x") == Rate(
        task="sst2", split=RATES_SPLIT, label="x", learning_rate=1e-3, tried=(Tried(3e-4, 0.7), Tried(1e-3, 0.8))
    )


def test_a_cell_is_what_the_runner_kept() -> None:
    of = setup("fedkrso[learning_rate=3e-3]", clients=2)
    rows = [row(of, number, 0.7 + number / 100, metrics={"dev_own": 0.5}) for number in (1, 2)]
    made = cell_of("mine", of, rows, None)
    assert (
        made.learning_rate == 3e-3 and made.rounds == (1, 2) and made.held == (0.71, 0.72) and made.dev == (0.61, 0.62)
    )
    assert made.up == (0.5, 1.0) and made.down == (1.5, 3.0) and made.seconds == (5.0, 10.0) and made.own == (0.5, 0.5)


def test_tables_say_means_over_seeds_costs_and_pairs(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cells.csv")
    for seed, (ours, full) in enumerate(((0.82, 0.80), (0.81, 0.82), (0.86, 0.81))):
        cells.add(cell("FedKRSO", seed, ours))
        cells.add(cell(FULL, seed, full))
    cells.add(cell("FedSA-LoRA, own rows"))
    cells.add(cell("FedKRSO" + HEAD_AT_END, 0, 0.85))
    columns = [("sst2", RATES_SPLIT), ("sst2", "labels")]
    lines = list(results(cells, ["FedKRSO", "FedSA-LoRA, own rows", "FedIT"], "sst2", [RATES_SPLIT, "labels"]))
    assert lines[0] == "| sst2 | Dirichlet 0.5 | Dirichlet 0.5, head at the end |"
    assert lines[2:] == ["| FedKRSO | 0.830 / 0.810 (3) | 0.850 / 0.830 |", "| FedSA-LoRA, own rows | 0.900 |  |"]
    assert list(searched(cells, ["FedKRSO", "FedIT"], columns))[3] == (
        "| FedKRSO | sst2, Dirichlet 0.5, 1 | 0.810 / 0.790 | 0.0003: 0.700, **0.001: 0.800** | 1.00 / 2.00 | 20 |"
    )
    assert list(costs(cells, ["FedKRSO", "FedIT"], columns))[2:] == [
        "| FedKRSO | sst2, Dirichlet 0.5 | 1.000 | 2.000 | 4 | 3.00 | 20 |"
    ]
    assert list(curve(cells, "sst2", [RATES_SPLIT], ["FedKRSO"]))[2] == "| FedKRSO | 0.830 / 0.810 (3) |"
    assert not list(paired(cells, "FedIT", FULL, columns))
    assert len(list(curve(cells, "sst2", [RATES_SPLIT], ["FedKRSO", "FedIT"]))) == 3
    (line,) = list(paired(cells, "FedKRSO", FULL, columns))[2:]
    assert line == "| sst2, Dirichlet 0.5 | +2.0, -1.0, +5.0 | +2.0 ± 3.5 | +2.0, -1.0, +5.0 | +2.0 ± 3.5 |"


@pytest.mark.parametrize("name", [*COMPARED, *SYSTEMS])
def test_every_method_can_be_planned_and_searches_three_rates(name: str, tmp_path: Path) -> None:
    one = (COMPARED | SYSTEMS)[name]
    runner = Runner(Cells(tmp_path / "cells.csv"), tmp_path, tmp_path, 1)
    (made,) = planned(runner.request(one, "sst2", "labels", 3), Rates(tmp_path))
    assert made.pooling == "mean" and made.seed == 3 and made.split == "labels"
    assert (made.head == "ridge") == (one.head == "ridge" and name != FROZEN)
    assert all(len(one.grid(labels)) == (1 if name in (FROZEN, "FedBPT") else 3) for labels in (0, 2, 150))
    # All take as many steps of as many rows, but where a step is another thing.
    steps = {"FedKSeed": (18, 8), "FedBPT": (8, 16)}
    assert (made.method.steps, made.method.batch_size) == steps.get(name, (12, 8))
    assert made.rounds == (one.rounds or 1 + 3 * one.turns) + ("heads again" in name)


def test_what_is_searched_lies_around_a_systems_own_default(tmp_path: Path) -> None:
    runner = Runner(Cells(tmp_path / "cells.csv"), tmp_path, tmp_path, 1)
    found = {
        name: [
            one.method.learning_rate
            for one in planned_tuning(runner.request(SYSTEMS[name], "sst2", RATES_SPLIT, 0), Rates(tmp_path), grid)
        ]
        for name in ("IA3", "prompts", "FedTT+", "FedCyBGD")
        for grid in (SYSTEMS[name].few,)
    }
    assert found == {
        "IA3": [3e-3, 1e-2, 3e-2],
        "prompts": [1e-2, 3e-2, 1e-1],
        "FedTT+": [1e-2, 3e-2, 1e-1],
        "FedCyBGD": [3e-5, 1e-4, 3e-4],
    }


def test_a_cell_that_is_there_is_not_run_and_its_rate_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Cells(tmp_path / "cells.csv")
    cells.add(cell("FedKRSO", tried=("0.0003:0.7", "0.001:0.8", "0.003:0.6")))
    asked: list[tuple[int, float]] = []
    monkeypatch.setattr(
        Runner,
        "_jobs",
        lambda self, setups: asked.extend((one.seed, one.method.learning_rate) for one in setups) or [],
    )
    arguments = ["run", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--cells", str(tmp_path / "cells.csv")]
    more = ["--tasks", "sst2", "--splits", RATES_SPLIT, "--seeds", "0,1", "--methods", "FedKRSO"]
    done = CliRunner().invoke(comparison.main, [*arguments, *more])
    assert done.exit_code == 0, done.output
    assert asked == [(1, 1e-3)]


@pytest.mark.parametrize(
    ("best", "searched", "chosen"),
    [
        (3e-4, [[0.1, 0.3, 1.0]], 3e-4),
        (2.9e-5, [[0.1, 0.3, 1.0], [0.03, 0.1, 0.3, 1.0], [0.01, 0.03, 0.1, 0.3, 1.0]], 3e-5),
        (1e9, [[0.1, 0.3, 1.0], [0.1, 0.3, 1, 3], [0.1, 0.3, 1, 3, 10], [0.1, 0.3, 1, 3, 10, 30]], 3e-2),
    ],
)
def test_a_search_goes_on_beyond_its_grid_while_the_best_is_at_the_edge(
    best: float, searched: list[list[float]], chosen: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float]] = []

    def tuned(self: Runner, one: Compared, task: str, factors: Sequence[float]) -> list[Rate]:
        asked.append([float(f"{factor:.6g}") for factor in factors])
        tried = tuple(
            Tried(float(f"{1e-3 * factor:.2g}"), 1.0 - abs(math.log(1e-3 * factor / best))) for factor in factors
        )
        most = max(tried, key=lambda each: each.metric or -math.inf)
        return [Rate(task=task, split=RATES_SPLIT, label=one.name, learning_rate=most.learning_rate, tried=tried[::-1])]

    monkeypatch.setattr(Runner, "_tuned", tuned)
    monkeypatch.setattr(Runner, "_jobs", lambda self, setups: [])
    runner = Runner(Cells(tmp_path / "cells.csv"), tmp_path, tmp_path, 1)
    runner.run(COMPARED["FedKRSO"], "sst2", "dirichlet:0.1", 0)
    assert [sorted(factors) for factors in asked] == searched
    (kept,) = Rates(tmp_path).all
    assert kept.learning_rate == pytest.approx(chosen)


def test_a_run_that_a_head_ends_is_two_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(self: Runner, setups: Sequence[Setup]) -> list[Job]:
        (of,) = setups
        assert of.again == 3 and of.rounds == 5
        rows = [row(of, number, 0.7 + number / 100, metrics={"dev_own": 0.5}) for number in (2, 4, 5)]
        files = write_run(tmp_path, of, rows, {"held": predictions([True]), "dev": predictions([True])})
        return [Job(of, files, tmp_path, tmp_path)]

    monkeypatch.setattr(Runner, "_jobs", ran)
    found = Cells(tmp_path / "cells.csv")
    found.add(cell("FedKRSO", tried=("0.0003:0.7", "0.001:0.8", "0.003:0.6")))
    runner = Runner(found, tmp_path, tmp_path, 1, ends=True)
    for _ in range(2):  # The second time there is nothing to run.
        runner.run(COMPARED["FedKRSO"], "sst2", "dirichlet:0.1", 0)
    (plain,) = found.of("sst2", "dirichlet:0.1", "FedKRSO")
    (ended,) = found.of("sst2", "dirichlet:0.1", "FedKRSO" + HEAD_AT_END)
    assert plain.rounds == (2, 4) and plain.held == (0.72, 0.74) and plain.own == (0.5, 0.5)
    assert ended.rounds == (2, 4, 5) and ended.held == (0.72, 0.74, 0.75)


def test_the_file_of_cells_can_be_printed() -> None:
    printed = CliRunner().invoke(comparison.main, ["table"])
    assert printed.exit_code == 0 and "| FedKRSO |" in printed.output
