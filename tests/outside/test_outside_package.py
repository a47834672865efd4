# SPDX-License-Identifier: Apache-2.0
"""A package of somebody else, installed beside: its method, task, metrics, codec, rule and device are found in
every process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import needs_mosquitto
from tiny import Recipe, Tiny
from workshop import Workshop

from tests.beside import install

pytestmark = pytest.mark.usefixtures("quick_workers")

HERE = Path(__file__).resolve().parent
ROUNDS = 2
_SECTIONS = """\
[task]
kind = "many-labels"
labels = ["left", "right"]
max_length = 16

[head]
start = "random"

[method]
name = "sign-average"
interval_steps = 2
steps = 8
batch_size = 4
learning_rate = 1e-3
tensor_learning_rate = 5e-2
step = 0.5

"""


class Outside(Tiny):
    """A run of the outside package's task with its method."""

    def texts(self, index: int) -> Path:
        """The workshop's texts, every other one with both labels."""
        path = self.folder / f"texts-{index}.csv"
        header, *rows = self.workshop.texts(index).read_text().splitlines()
        for number in range(0, len(rows), 2):
            text, _, _ = rows[number].partition(",")
            rows[number] = f"{text} right left,right+left"
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    def _job_text(self) -> str:
        # Without a schema: the evaluation process describes the model for the outside task.
        text = re.sub(r"schema_file = .*\n", "", super()._job_text())
        text = re.sub(r"\[task\].*?(?=\[round\])", _SECTIONS, text, flags=re.DOTALL)
        metrics = '["exact-match", "outside_package.metrics:hamming"]'
        return f'{text}\n[evaluation]\nsource = "{self.texts(9)}"\nmetrics = {metrics}\n'

    def _node_text(self, index: int) -> str:
        return super()._node_text(index).replace(str(self.workshop.texts(index)), str(self.texts(index)))


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, found by every process that is started."""
    folder = install(HERE, tmp_path / "beside")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))
    return folder


def test_method_task_metrics_and_codec_of_an_outside_package_run_in_all_processes(tmp_path: Path, beside: Path) -> None:
    needs_mosquitto()
    workshop = Workshop(tmp_path / "workshop")
    run = Outside(tmp_path / "run", workshop, Recipe(rounds=ROUNDS))
    try:
        run.finish(lambda: None)
        run.check()
        summary = run.found()
    finally:
        run.close()
    for row in summary["rounds"]:
        assert row["metrics"].keys() == {"exact-match", "hamming"}
        # Two labels: each text whose labels are not all right has one or two wrong ones.
        wrong = 1 - row["metrics"]["exact-match"]
        assert 0 <= wrong / 2 <= row["metrics"]["hamming"] <= wrong <= 1
        assert row["accuracy"] == pytest.approx(1 - row["metrics"]["hamming"])
    # It learns: the mean loss of two coins is 2 log 2, 1.386.
    assert summary["rounds"][-1]["loss"] < summary["rounds"][0]["loss"]
    agents = [node["agent_peak_rss_bytes"] for node in summary["nodes"].values()]
    assert all(0 < peak <= 40_000_000 for peak in agents), agents
    _check_export(run.files.root, tmp_path / "tuned")


def _check_export(root: Path, folder: Path) -> None:
    """The run's model is the checkpoint with what the outside method learned, since it says how that is written out."""
    command = ["coordinator", "export", root.name, str(folder), "--runs", str(root.parent)]
    subprocess.run([sys.executable, "-m", "fedkrso", *command], check=True)
    program = """
import json, numpy as np
from pathlib import Path
from coordinator.reports.lastmodel import last_model
from coordinator.store.folder import RunFolder
from fedcore.weights.checkpoint import Checkpoint
last, tuned = last_model(RunFolder(Path({root!r}))), Checkpoint(Path({folder!r}))
for layer in last.schema.layers:
    learned = last.state.entries[layer.name].values()
    assert np.abs(learned).max() > 0
    there = tuned.read(last.schema.export_prefix + layer.name + ".weight")
    assert (there == last.base.checkpoint.read(layer.name + ".weight") + learned).all(), layer.name
print(json.loads((tuned.folder / "config.json").read_text())["problem_type"])
"""
    assert ask(program.format(root=str(root), folder=str(folder))) == "multi_label_classification\n"
    assert "| method | sign-average" in (folder / "README.md").read_text()


def ask(program: str) -> str:
    """What a process of its own prints, with the package beside."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_an_outside_device_is_asked_first(tmp_path: Path, beside: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "test-bench").touch()
    program = "from pathlib import Path; from devices.detection import detect; print(detect(Path({!r})).facts.kind)"
    assert ask(program.format(str(tmp_path / "root"))) == "test-bench\n"
    assert ask(program.format(str(tmp_path))) != "test-bench\n"


def test_agents_load_neither_numpy_nor_torch_for_it(beside: Path) -> None:
    program = """
import sys
import edge_client.agent.agent
from fedcore.round.training import training_union
assert "SignTraining" in str(training_union())
print(sorted({"numpy", "torch"} & sys.modules.keys()))
"""
    assert ask(program) == "[]\n"


def test_a_package_that_cannot_be_loaded_is_named(beside: Path) -> None:
    (beside / "outside_package" / "light.py").write_text("import nothing_of_this_name\n")
    said = ask("from fedcore.registry import TASKS; TASKS.get('many-labels')")
    assert "package outside-package cannot be loaded: No module named 'nothing_of_this_name'" in said
    assert "fedkrso.tasks: many-labels = outside_package.light" in said


def test_a_job_may_ask_for_a_rule_of_it(beside: Path) -> None:
    program = """
import numpy as np
from coordinator.job import SafetySection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.combining import require_combining
rule = SafetySection(rule="weighted-median").combining()
require_combining(FedKRSOSettings(), rule, "weighted-median", 3)
print(rule.weighted, rule.combine(np.array([[5, 1], [4, 2], [9, 3]]), np.array([1, 1, 3])).tolist())
"""
    assert ask(program) == "True [9, 3]\n"


def test_signs_from_elsewhere_are_checked(beside: Path) -> None:
    program = """
import numpy as np
from fedcore.errors import MalformedMessage
from fedcore.numbers.codecs import codec_of, encoded
from fedcore.numbers.coding import Coding
codec, values = codec_of("signs"), np.array([[0.5, -0.25, 0.75], [-2.0, -2.0, 2.0]], np.float32)
entry = encoded(values, Coding("signs", 4), "here")
raw = codec.pack(entry, 4, 6)
assert (codec.unpack(raw, (2, 3), 4, "here").values() == entry.values()).all()
print(entry.values().tolist())
for change in ({"data": b""}, {"exponent": bytes([100, 100])}, {"exponent": 3}):
    try:
        codec.unpack(raw | change, (2, 3), 4, "here")
    except MalformedMessage as error:
        print(error.message)
"""
    assert ask(program).splitlines() == [
        "[[0.5, -0.5, 0.5], [-2.0, -2.0, 2.0]]",
        "signs of another size",
        "an exponent is out of bounds",
        "a record has fields of the wrong type",
    ]
