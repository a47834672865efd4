# SPDX-License-Identifier: Apache-2.0
"""A run's numbers in TensorBoard and MLflow: all of them, none twice, and the run knows nothing of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from made_runs import fedkrso, finished_run, running_run

from coordinator.reports.objects import round_objects
from coordinator.reports.runs import read_run
from coordinator.store.folder import RunFolder
from coordinator.store.ledger import RoundRow, SqliteLedger
from coordinator.tracking.following import numbers_of, track, tracked
from coordinator.tracking.sinks import SINKS, Tracked
from fedcore.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "runs", "voice").root


class Kept:
    """A sink that keeps what it is told."""

    all: list[Kept] = []

    def __init__(self, target: str, run: Tracked) -> None:
        self.target, self.run = target, run
        self.values: dict[tuple[int, str], float] = {}
        self.times: list[float] = []
        self.ended: bool | None = None
        self.all.append(self)

    def put(self, server_round: int, at: float, values: Mapping[str, float]) -> None:
        self.times.append(at)
        self.values |= {(server_round, name): value for name, value in values.items()}

    def close(self, *, ended: bool) -> None:
        self.ended = ended


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    module = ModuleType("kept_sink")
    module.Kept = Kept  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kept_sink", module)
    monkeypatch.setitem(SINKS, "kept", "kept_sink:Kept")
    Kept.all = []
    return Kept.all


def test_every_number_of_every_round_comes(root: Path, kept: list[Kept]) -> None:
    rows = round_objects(read_run(root))
    assert track(root, ["kept:a", "kept:b"]) == len(rows) == 3
    for sink in kept:
        assert sink.ended and sink.run.settings["method"].startswith("fedkrso") and sink.times == sorted(sink.times)
        assert sink.values == {(row["round"], name): value for row in rows for name, value in numbers_of(row).items()}
    assert {name for _, name in kept[0].values} >= {"accuracy", "loss", "train_loss", "uplink_bytes", "metric_f1"}


def test_it_follows_a_run_to_its_end(tmp_path: Path, kept: list[Kept]) -> None:
    looks: list[float] = []
    root = tmp_path / "runs" / "voice"

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        ledger = SqliteLedger(RunFolder(root).ledger)
        ledger.put_round(RoundRow(before + len(looks), ("a",), 1, 1, 1.0, 0.5))
        ledger.close()
        if len(looks) == 2:
            raise KeyboardInterrupt

    with running_run(tmp_path / "runs", "voice"):
        before = len(read_run(root).rows)
        with pytest.raises(KeyboardInterrupt):
            track(root, ["kept:a"], follow=True, sleep=sleep)
    assert (before + 1, "train_loss") in kept[0].values and kept[0].ended is False


def test_what_cannot_be_a_sink_is_named(root: Path) -> None:
    for target, words in (
        ("paper:x", "'paper' is no sink .there are: tensorboard, mlflow"),
        ("mlflow", "names no target"),
    ):
        with pytest.raises(ConfigError, match=words):
            track(root, [target])


def test_one_whose_package_is_missing_says_which(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "tensorboard", "a_package_that_nobody_has:TensorBoard")
    with pytest.raises(ConfigError, match=r"pip install 'fedkrso\[tensorboard\]'"):
        track(root, ["tensorboard:x"])


def test_tensorboard_has_it_once(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected = {
        (row["round"], name): value for row in round_objects(read_run(root)) for name, value in numbers_of(row).items()
    }
    for _ in range(2):
        said = fedkrso("runs", "track", "voice", "--runs", root.parent, "--to", f"tensorboard:{tmp_path / 'boards'}")
        assert said.returncode == 0 and said.stdout == "voice: 3 rounds\n", said.stderr
    read = EventAccumulator(str(tmp_path / "boards" / "voice"))
    read.Reload()
    found = {(entry.step, tag): entry.value for tag in read.Tags()["scalars"] for entry in read.Scalars(tag)}
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[key], expected[key], rel_tol=1e-6) for key in expected)
    assert sum(len(read.Scalars(tag)) for tag in read.Tags()["scalars"]) == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["folder", "sqlite"])
def test_mlflow_has_it_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    target = f"file://{tmp_path / 'mlruns'}"
    if store == "sqlite":
        pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no database of its own")
        target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    # Version 3 wants to be asked for a folder.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    expected = {
        (row["round"], name): value for row in round_objects(read_run(root)) for name, value in numbers_of(row).items()
    }
    for _ in range(2):
        assert track(root, [f"mlflow:{target}"]) == 3
    client = mlflow.MlflowClient(target)
    experiment = client.get_experiment_by_name("fedkrso")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["method"].startswith("fedkrso")
    found = [
        (m.step, m.key, m.value) for key in run.data.metrics for m in client.get_metric_history(run.info.run_id, key)
    ]
    assert {(step, key): value for step, key, value in found} == expected and len(found) == len(expected)
    assert tracked(read_run(root)).run == "voice"
