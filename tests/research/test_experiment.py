# SPDX-License-Identifier: Apache-2.0
"""Runs of the experiment with tiny models: left anywhere and gone on with, they end as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import research.experiment as experiment
from edge_client.worker.train.trainer import Trainer
from fedcore.methods.fedkrso import FedKRSOSettings
from research.data.splits import parse_split
from research.data.tasks import read_parts, task_by_name
from research.experiment import Experiment
from research.presence import Downlink, taking_part
from research.runs.methods import parse_methods, settings_of
from research.runs.predictions import load_predictions
from research.runs.rows import Row, RunFiles, Setup

SIZES: dict[str, Any] = {
    "rounds": 3,
    "clients": 3,
    "max_length": 14,
    "most_train": 60,
    "most_held": 16,
    "micro_batch_size": 4,
}
QUICK: dict[str, Any] = {
    "steps": 4,
    "interval_steps": 2,
    "batch_size": 4,
    "rank": 2,
    "num_directions": 8,
    "learning_rate": 5e-3,
}
NOT_THE_MODEL = ("peak_bytes", "seconds", "processor_seconds")


class Left(Exception):
    """Stands for whatever ended a process."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def begin(
    data_folder: Path, make_model: Callable[[str], Path], tmp_path: Path
) -> Callable[..., tuple[Experiment, RunFiles]]:
    """An experiment in a folder of its own name, from where that was left."""

    def make(
        folder: str, label: str = "fedkrso", model: str = "bert", dtype: torch.dtype = torch.float32, **changes: Any
    ) -> tuple[Experiment, RunFiles]:
        (named,) = parse_methods(label)
        preset = QUICK | ({"num_seeds": 3} if named.name.startswith("fedk") else {})
        fields: dict[str, Any] = {"task": "sst2", "split": "iid", "seed": 1, **SIZES, **changes}
        setup = Setup(label=label, method=settings_of(named, preset), base=named.base or "int8", **fields)
        task, files = task_by_name(setup.task), RunFiles(tmp_path / folder)
        files.folder.mkdir(exist_ok=True)
        parts = read_parts(task, data_folder, setup.max_length, most_train=setup.most_train, most_held=setup.most_held)
        made = Experiment(
            setup, task, parts, parse_split(setup.split), make_model(model), files, torch.device("cpu"), dtype
        )
        return made, files

    return make


Begin = Callable[..., tuple[Experiment, RunFiles]]


def whole(begin: Begin, folder: str, **arguments: Any) -> tuple[list[Row], RunFiles]:
    made, files = begin(folder, **arguments)
    for row in made.rows():
        files.add(row)
    return files.rows(), files


def lasting(rows: list[Row]) -> list[dict[str, Any]]:
    return [{key: value for key, value in msgspec.to_builtins(row).items() if key not in NOT_THE_MODEL} for row in rows]


def leave_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Have a function of the experiment end the process, so to say, at its n-th call."""
    original, calls = getattr(experiment, name), iter(range(1, 10_000))

    def instead(*arguments: Any) -> Any:
        if next(calls) == call:
            raise Left
        return original(*arguments)

    monkeypatch.setattr(experiment, name, instead)


# After a client's update; before the state is kept; before it is measured; between two measurements. All in the second
# of three rounds.
PLACES = {"admit": 5, "save_state": 2, "scores_of": 3, "scores_of again": 4}
LEFT = {
    "fedkrso": ("scores_of",),
    "fedkrso[schedule=fresh]": tuple(PLACES),
    "fedkrso[schedule=fresh,refresh_every=2]": ("admit", "scores_of again"),
    "fedsa-lora": ("admit", "scores_of again"),
    "fedavg[base=float32]": ("save_state",),
    "fedkseed": ("admit",),
    "flora": ("scores_of",),
    "fedex-lora": ("scores_of again",),
    "ferret": ("admit",),
    "fedkrso[projection=informed,informed_share=0.7]": ("admit", "scores_of again"),
}
# Seeds that stay, new ones in every round, and a state for each client.
_QUICK = ("fedkrso", "fedkrso[schedule=fresh]", "fedsa-lora")


@pytest.mark.parametrize(
    "label", [label if label in _QUICK else pytest.param(label, marks=pytest.mark.slow) for label in LEFT]
)
def test_a_run_that_was_left_anywhere_ends_the_same(label: str, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, files = whole(begin, "undisturbed", label=label)
    assert len(rows) == 3 and len({row.digest for row in rows}) == 3
    for place in LEFT[label]:
        with monkeypatch.context() as context:
            made, left = begin(place, label=label)
            # Each of three clients has a model of its own to be measured.
            times = 3 if label == "fedsa-lora" and place.startswith("scores") else 1
            leave_at(context, place.split()[0], PLACES[place] * times)
            with pytest.raises(Left):
                for row in made.rows():
                    left.add(row)
        assert len(left.rows()) == 1
        again, left = whole(begin, place, label=label)
        assert lasting(again) == lasting(rows)
        said, wanted = load_predictions(left.predictions), load_predictions(files.predictions)
        assert all(np.array_equal(said[part].said, wanted[part].said) for part in ("held", "dev"))


@pytest.mark.parametrize("label", ["fedkrso", "fedkrso[schedule=fresh]"])
def test_measuring_less_often_changes_nothing_that_is_measured(
    label: str, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, second, third), _ = whole(begin, "each", label=label, dropout=0.3)
    rows, files = whole(begin, "some", label=label, dropout=0.3, measure_every=2)
    assert [row.round for row in rows] == [2, 3] and [len(row.published_bytes) for row in rows] == [2, 1]
    assert lasting(rows)[1] == lasting([third])[0]
    differ = {key for key, value in lasting(rows)[0].items() if value != lasting([second])[0][key]}
    # Of both rounds together.
    assert differ == {"train_loss", "published_bytes"} and rows[0].published_bytes[1] == second.published_bytes[0]
    assert (
        files.count_rounds(
            Setup(label="", method=FedKRSOSettings(), task="sst2", split="iid", seed=0, rounds=3, measure_every=2)
        )
        == 3
    )
    # Left in the third round, it goes on from the second; left in the first, it begins anew.
    for call, done in ((2, 1), (1, 0)):
        with monkeypatch.context() as context:
            made, left = begin(f"left-{done}", label=label, dropout=0.3, measure_every=2)
            leave_at(context, "save_state", call)
            with pytest.raises(Left):
                for row in made.rows():
                    left.add(row)
        assert len(left.rows()) == done
        again, _ = whole(begin, f"left-{done}", label=label, dropout=0.3, measure_every=2)
        assert lasting(again) == lasting(rows)


def test_a_run_artefact_is_fetched_once_by_each_client(begin: Begin) -> None:
    downlink = Downlink(3, 1024, artefact_bytes=70)
    assert downlink.fetch([0, 1]) == 140 and downlink.fetch([0, 1]) == 0
    downlink.publish(1, 0, {"whole": 1000})
    assert downlink.fetch([0, 2]) == 2 * 1000 + 70
    made, files = begin("informed", label="fedkrso[projection=informed]", rounds=1)
    size = (files.scratch / "artefact.bin").stat().st_size
    (row,), (plain,) = list(made.rows()), whole(begin, "plain", rounds=1)[0]
    # Plans are somewhat longer; updates and published states of about one size, whatever the rows.
    assert abs(row.downlink_bytes - plain.downlink_bytes - 3 * size) < size


def test_a_row_that_was_cut_short_is_trained_again(begin: Begin) -> None:
    rows, _ = whole(begin, "undisturbed")
    made, files = begin("cut")
    for row in made.rows():
        files.add(row)
        if row.round == 2:
            break
    path = files.folder / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    again, _ = whole(begin, "cut")
    assert lasting(again) == lasting(rows)


@pytest.mark.parametrize("damage", ["state", "base"])
def test_what_is_damaged_begins_anew_and_ends_the_same(damage: str, begin: Begin) -> None:
    label = "fedkrso[schedule=fresh]"
    rows, _ = whole(begin, "undisturbed", label=label)
    made, files = begin("damaged", label=label)
    for row in made.rows():
        files.add(row)
        if row.round == 2:
            break
    if damage == "state":
        (files.scratch / "state" / "2.npz").write_bytes(b"PK")
    else:
        # Round 2 began with the merge of round 1; the next one builds on it.
        masters = sorted((files.scratch / "base" / "1").glob("*"))
        for path in masters:
            if path.suffix != ".json":
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 64
                path.write_bytes(data)
    again, files = whole(begin, "damaged", label=label)
    assert lasting(again) == lasting(rows)


def test_bytes_are_those_of_the_files_and_of_who_took_part(begin: Begin) -> None:
    made, files = begin("run", dropout=0.5, rounds=4, seed=3)
    sizes: list[int] = []
    rows: list[Row] = []
    for row in made.rows():
        files.add(row)
        rows.append(row)
        present = taking_part(3, 0.5, 3, row.round)
        assert row.clients == len(present)
        sent = sum((files.scratch / f"client-{client}.bin").stat().st_size for client in present)
        assert row.uplink_bytes - (rows[-2].uplink_bytes if len(rows) > 1 else 0) == sent
        sizes.append((files.scratch / "published" / f"{row.round}-whole.bin").stat().st_size)
        assert row.published_bytes[-1]["whole"] == sizes[-1]
    assert {row.clients for row in rows} != {3}
    all_there, _ = whole(begin, "nobody-missing", rounds=4, seed=3)
    assert all_there[-1].uplink_bytes > rows[-1].uplink_bytes and all_there[-1].examples == 60
    # Left and gone on with, who comes back fetches the same.
    made, files = begin("left", dropout=0.5, rounds=4, seed=3)
    for row in made.rows():
        files.add(row)
        if row.round == 2:
            break
    again, _ = whole(begin, "left", dropout=0.5, rounds=4, seed=3)
    assert lasting(again) == lasting(rows)


@pytest.mark.parametrize(
    ("model", "task"),
    [("roberta", "sst2"), ("llama", "sst2"), ("llama", "shakespeare"), ("bert", "stsb"), ("llama", "stsb")],
)
def test_other_architectures_and_tasks_are_taken_as_they_are(model: str, task: str, begin: Begin) -> None:
    split = "natural" if task == "shakespeare" else "dirichlet:100"
    rows, files = whole(
        begin, "run", model=model, task=task, split=split, rounds=2, label="fedkrso[learning_rate=1e-2]"
    )
    assert len(rows) == 2 and rows[0].digest != rows[1].digest
    names = {"sst2": "accuracy", "shakespeare": "perplexity", "stsb": "spearman"}
    assert (
        rows[-1].held == rows[-1].metrics[f"held_{names[task]}"]
        and rows[-1].dev == rows[-1].metrics[f"dev_{names[task]}"]
    )
    if task == "shakespeare":
        assert rows[1].held < rows[0].held < 100, "a tiny model of 25 words learns something in two rounds"
    assert {part: found.said.shape[0] for part, found in load_predictions(files.predictions).items()} == {
        "held": 1,
        "dev": 1,
    }


def test_where_each_client_has_a_model_all_are_measured(begin: Begin) -> None:
    rows, files = whole(begin, "run", label="fedsa-lora", rounds=2)
    said = load_predictions(files.predictions)["held"]
    assert said.said.shape == (3, 16)
    assert rows[-1].held == pytest.approx(float(np.mean(said.said == said.wanted)))


def test_a_run_for_tuning_sees_neither_held_out_nor_development_rows(begin: Begin) -> None:
    rows, files = whole(begin, "tuning", rounds=1, tune=True)
    other, _ = whole(begin, "run", rounds=1)
    assert rows[0].dev is None and not any(name.startswith("dev") for name in rows[0].metrics)
    assert set(load_predictions(files.predictions)) == {"held"}
    assert rows[0].digest == other[0].digest and rows[0].loss != other[0].loss


@pytest.mark.parametrize("label", ["fedkrso", "fedit"])
def test_products_in_bfloat16_as_on_a_gpu(label: str, begin: Begin) -> None:
    rows, _ = whole(begin, "run", label=label, dtype=torch.bfloat16, rounds=1)
    other, _ = whole(begin, "wide", label=label, rounds=1)
    assert rows[0].digest != other[0].digest and rows[0].train_loss == pytest.approx(other[0].train_loss, rel=0.05)


def test_rows_of_a_finished_round_never_change(begin: Begin) -> None:
    def first_rows() -> Iterator[Row]:
        for name in ("a", "b"):
            made, _ = begin(name, rounds=1 if name == "a" else 3)
            yield next(iter(made.rows()))

    one, other = first_rows()
    assert lasting([one]) == lasting([other]), "how many rounds follow decides nothing"


def test_sums_for_a_head_are_made_once_for_all_methods(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    original = Trainer.train

    def counted(self: Any, plan: Any, *rest: Any) -> Any:
        trained.append(type(plan.training).__name__)
        return original(self, plan, *rest)

    monkeypatch.setattr(Trainer, "train", counted)
    changes = {"head": "ridge", "pooling": "mean", "rounds": 2}
    alone, _ = whole(begin, "alone", **changes)
    assert trained.count("HeadTraining") == 3
    for label, more in (("fedavg", 3), ("fedkrso", 0)):
        place = f"runs/sst2-iid/{label}/seed-1"
        (tmp_path / place).mkdir(parents=True)
        trained.clear()
        rows, _ = whole(begin, place, label=label, **changes)
        assert trained.count("HeadTraining") == more and len(trained) == 3 + more
    assert lasting(rows) == lasting(alone) and rows[0].processor_seconds > 0
    # What is damaged is made again.
    for path in (tmp_path / "heads").rglob("*.json"):
        path.write_bytes(b"{")
    (tmp_path / "runs/sst2-iid/fedkrso/seed-1/rows.jsonl").unlink()
    again, _ = whole(begin, place, label="fedkrso", **changes)
    assert lasting(again) == lasting(alone) and trained.count("HeadTraining") == 3


def test_truly_full_fine_tuning_trains_every_tensor_of_the_model(begin: Begin) -> None:
    changes = {"label": "fedavg", "head": "ridge", "pooling": "mean", "rounds": 2}
    made, _ = begin("full", trained_tensors=("*",), **changes)
    names = {tensor.name for tensor in made._schema.tensors}
    assert {"bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias"} <= names
    assert sum(name.endswith("bias") for name in names) > len(made._schema.layers) > 4
    full, usual = (list(one.rows())[-1] for one in (made, begin("usual", **changes)[0]))
    assert full.uplink_bytes > usual.uplink_bytes and full.digest != usual.digest
    assert 0 <= full.metrics["dev_own"] <= 1


def test_models_of_ones_own_are_measured_for_ones_own_labels(begin: Begin) -> None:
    made, _ = begin("own", label="fedsa-lora", split="labels", clients=2, rounds=2)
    rows = list(made.rows())
    # Each client knows one label and says it of every row: right of all its own, and of half of all rows.
    assert rows[-1].metrics["dev_own"] > rows[-1].metrics["dev_accuracy"]
