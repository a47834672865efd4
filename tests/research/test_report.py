# SPDX-License-Identifier: Apache-2.0
"""The report on runs that nobody ran: every number in it can be worked out by hand."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from fedcore.errors import RunError
from research.reports.report import write_report
from research.runs.predictions import PARTS, Predictions
from tests.research.paper_runs import predictions, row, setup, write_run


def table(folder: Path, name: str, stem: str = "sst2-dirichlet-0.5") -> dict[str, list[str]]:
    """Rows of a table by their first cell (and the second, where the first repeats), the headings under an empty
    one."""
    with (folder / "tables" / f"{stem}-{name}.csv").open() as file:
        rows = list(csv.reader(file))
    found = {"": rows[0]}
    for cells in rows[1:]:
        found[cells[0] if cells[0] not in found else f"{cells[0]} {cells[1]}"] = cells[1:]
    return found


def right(count: int, rows: int) -> list[bool]:
    return [row < count for row in range(rows)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods, two seeds, and dropout for one of them."""
    out = tmp_path / "out"
    for seed in (0, 1):
        for label, curve, size in (("fedkrso", (0.5, 0.8, 0.7), 1), ("fedavg[base=float32]", (0.6, 0.6, 0.6), 40)):
            of = setup(label, seed=seed)
            rows = [
                row(of, n, held + 0.02 * seed, uplink_bytes=size * 10**6 * n, downlink_bytes=size * 3 * 10**6 * n)
                for n, held in enumerate(curve, 1)
            ]
            said = round(100 * rows[-1].held)
            write_run(out, of, rows, {"held": predictions(right(said, 100)), "dev": predictions(right(said - 10, 100))})
    missing = setup("fedkrso", dropout=0.3)
    write_run(out, missing, [row(missing, n, 0.5 + n / 100) for n in (1, 2, 3)], {"held": predictions(right(53, 100))})
    return out


def test_the_final_table_has_last_and_best_rounds(folder: Path) -> None:
    write_report(folder, resamples=200)
    found = table(folder, "final")
    column = {name: index - 1 for index, name in enumerate(found[""])}
    ours = found["fedkrso"]
    assert list(found) == ["", "fedkrso", "fedavg[base=float32]"], "the best first"
    assert float(ours[column["held, last round"]]) == pytest.approx(0.71)
    assert float(ours[column["held, last round deviation"]]) == pytest.approx(0.02 / 2**0.5)
    assert float(ours[column["held, best round"]]) == pytest.approx(0.81)
    assert float(ours[column["dev, last round"]]) == pytest.approx(0.61)
    # Three rounds, two clients: 3 MB / 6.
    assert float(ours[column["up, MB a round"]]) == pytest.approx(0.5)
    assert float(ours[column["down, MB a round"]]) == pytest.approx(1.5)
    assert float(ours[column["peak memory, MB"]]) == pytest.approx(400.000003)
    assert float(ours[column["seconds a round"]]) == 5.0
    assert ours[column["learning rate"]] == "0.001 (default)"


def test_the_reference_is_compared_seed_by_seed_and_row_by_row(folder: Path) -> None:
    write_report(folder, resamples=500)
    found = table(folder, "differences")
    cells = dict(zip(found[""][1:], found["fedavg[base=float32]"], strict=True))
    assert cells["seeds"] == "2" and float(cells["held, difference"]) == pytest.approx(0.1)
    # Ten rows of a hundred that only the one has right: 0.1 +- 1.96 * 0.03.
    assert 0.03 < float(cells["held, from"]) < 0.06 and 0.14 < float(cells["held, to"]) < 0.17
    assert cells["held, by seed"] == "+0.1000 +0.1000" and cells["only one right"] == "20 : 0"
    write_report(folder, reference="fedavg[base=float32]", resamples=500)
    turned = dict(zip(found[""][1:], table(folder, "differences")["fedkrso"], strict=True))
    assert float(turned["held, difference"]) == pytest.approx(-0.1) and turned["only one right"] == "0 : 20"
    with pytest.raises(RunError, match="no finished run of 'fedit'"):
        write_report(folder, reference="fedit")


def test_a_task_without_the_reference_is_compared_with_its_own(folder: Path) -> None:
    for label, held in (("fedkrso", 0.4), ("fedit", 0.3)):
        of = setup(label, task="cola")
        write_run(
            folder, of, [row(of, n, held) for n in (1, 2, 3)], {part: predictions(right(50, 100)) for part in PARTS}
        )
    write_report(folder, reference="fedavg[base=float32]", resamples=100)
    assert list(table(folder, "differences")) == ["", "fedkrso"]
    assert list(table(folder, "differences", stem="cola-dirichlet-0.5")) == ["", "fedit"]


def test_the_views_of_who_deploys_it(folder: Path) -> None:
    write_report(folder, targets=(0.65, 0.81), resamples=100)
    budget = table(folder, "budget")
    # A client of FedKRSO has sent and fetched 2, 4, 6 MB after its rounds, one of FedAvg 80, 160, 240.
    assert budget[""][1::2] == [f"{size} MB" for size in (2, 5, 10, 50, 100, 200, 500)]
    ours = dict(zip(budget[""][1:], budget["fedkrso"], strict=True))
    theirs = dict(zip(budget[""][1:], budget["fedavg[base=float32]"], strict=True))
    assert [float(ours[f"{size} MB"]) for size in (2, 5, 10, 500)] == pytest.approx([0.51, 0.81, 0.71, 0.71])
    assert theirs["50 MB"] == "" and float(theirs["100 MB"]) == pytest.approx(0.61)
    cost = table(folder, "cost")
    cells = dict(zip(cost[""][1:], cost["fedkrso"], strict=True))
    assert (
        cells["seeds that reach it"],
        float(cells["rounds"]),
        float(cells["MB a client"]),
        float(cells["seconds"]),
    ) == (
        "2 of 2",
        2.0,
        4.0,
        10.0,
    )
    assert cost["fedkrso 0.81"][1] == "1 of 2" and cost["fedavg[base=float32]"][1:3] == ["0 of 2", ""]
    dropout = table(folder, "dropout")
    assert dropout[""] == ["method", "missing 0%", "missing 0% deviation", "missing 30%", "missing 30% deviation"]
    assert [float(dropout["fedkrso"][index]) for index in (0, 2)] == pytest.approx([0.71, 0.53])
    assert dropout["fedavg[base=float32]"][2:] == ["", ""]


def test_f1_stands_beside_the_accuracy_that_is_compared(tmp_path: Path) -> None:
    of = setup(task="mrpc")
    rows = [
        row(of, n, held, metrics={"held_f1": held + 0.1, "dev_f1": held}) for n, held in enumerate((0.9, 0.6, 0.7), 1)
    ]
    write_run(tmp_path, of, rows, {"held": predictions(right(7, 10)), "dev": predictions(right(6, 10))})
    write_report(tmp_path, resamples=100)
    found = table(tmp_path, "final", "mrpc-dirichlet-0.5")
    cells = dict(zip(found[""][1:], found["fedkrso"], strict=True))
    assert float(cells["held, last round"]) == pytest.approx(0.7)
    assert float(cells["held, F1"]) == pytest.approx(0.8) and float(cells["dev, F1"]) == pytest.approx(0.7)


def test_of_perplexities_less_is_better(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 20, size=60).astype(np.int32)
    for label, factor, curve in (("fedkrso", 3.0, (30.0, 20.0, 22.0)), ("fedit", 3.2, (30.0, 26.0, 25.0))):
        of = setup(label, task="shakespeare", split="natural")
        said = Predictions((factor * tokens).astype(np.float32)[None], tokens)
        write_run(tmp_path, of, [row(of, n, held) for n, held in enumerate(curve, 1)], {"held": said, "dev": said})
    write_report(tmp_path, resamples=100)
    final, cost = (table(tmp_path, name, "shakespeare-natural") for name in ("final", "cost"))
    assert list(final)[1] == "fedkrso" and [float(final["fedkrso"][index]) for index in (2, 4)] == [22.0, 20.0]
    cells = dict(zip(cost[""][1:], cost["fedkrso"], strict=True))
    assert float(cells["target"]) == pytest.approx(22.0 / 0.9) and float(cells["rounds"]) == 2.0
    found = table(tmp_path, "differences", "shakespeare-natural")
    better = dict(zip(found[""][1:], found["fedit"], strict=True))
    assert float(better["held, difference"]) == pytest.approx(np.exp(3.2) - np.exp(3.0), rel=1e-3)
    assert better["only one right"] == ""


def test_the_page_has_everything_and_needs_nothing(folder: Path) -> None:
    page = write_report(folder, resamples=100)
    text = page.read_text()
    assert text.count("<svg") == 3 and text.count("<table>") == 5
    for words in (
        "At the end",
        "fedkrso against the others",
        "Quality under a budget",
        "Cost to a target",
        "Robustness to missing clients",
    ):
        assert words in text and words in (folder / "tables" / "sst2-dirichlet-0.5.md").read_text()
    # Namespaces of SVG are names, not places.
    links = [
        link
        for link in re.findall(r"https?://[^\"' <]+", text)
        if not re.search(r"w3\.org|purl\.org|creativecommons\.org|matplotlib\.org", link)
    ]
    assert links == [] and "<script" not in text and 'src="' not in text
    files = {path: path.read_bytes() for path in (page, *(folder / "tables").iterdir())}
    write_report(folder, resamples=100)
    assert {path: path.read_bytes() for path in files} == files, "equal runs give equal pages"


def test_runs_that_are_not_finished_are_named_and_not_counted(folder: Path) -> None:
    of = setup("fedit")
    write_run(folder, of, [row(of, 1, 0.9)])
    text = write_report(folder, resamples=100).read_text()
    assert "Not finished, and in no table here: fedit on sst2, dirichlet:0.5, seed 0" in text
    assert "fedit" not in table(folder, "final")
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 5 * 3 + 1
        and rows[-1]["method"] == "fedkrso"
        and {"held_accuracy", "uplink_bytes", "seed"} <= rows[0].keys()
    )


def test_labels_cannot_write_into_the_page(folder: Path) -> None:
    text = write_report(folder, resamples=100).read_text()
    of = setup("fedit")
    files = write_run(
        folder,
        of,
        [row(of, n, 0.5) for n in (1, 2, 3)],
        {"held": predictions(right(50, 100)), "dev": predictions(right(50, 100))},
    )
    files.setup.write_bytes(files.setup.read_bytes().replace(b'"label":"fedit"', b'"label":"<b>|x"'))
    page = write_report(folder, resamples=100).read_text()
    assert "&lt;b&gt;" in page and "<b>|x" not in page.replace("<svg", "") and "<b>" not in text
    assert "<b>\\|x" in (folder / "tables" / "sst2-dirichlet-0.5.md").read_text()


def test_what_cannot_be_reported_is_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RunError, match="no runs with a finished round"):
        write_report(tmp_path / "nothing")
    of = setup("fedit")
    write_run(tmp_path / "half", of, [row(of, 1, 0.9)])
    with pytest.raises(RunError, match="none of 1 runs is finished"):
        write_report(tmp_path / "half")
    other = setup("fedit", most_held=50)
    write_run(
        folder,
        other,
        [row(other, n, 0.5) for n in (1, 2, 3)],
        {"held": predictions(right(9, 50)), "dev": predictions(right(9, 100))},
    )
    with pytest.raises(RunError, match="different held rows"):
        write_report(folder)
    (folder / other.place / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(RunError, match="predictions cannot be read") as refused:
        write_report(folder)
    assert "\n" not in refused.value.one_line()
