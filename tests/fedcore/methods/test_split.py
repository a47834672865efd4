# SPDX-License-Identifier: Apache-2.0
"""What a job may say of split learning, and which updates mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from plans import make_plan

from coordinator.job import Job, SafetySection
from coordinator.rounds.policy import admit
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.errors import ConfigError, UpdateRefused
from fedcore.methods import server_half
from fedcore.methods.split import SplitSettings
from fedcore.model.learned import layer_update
from fedcore.model.state import PublishedState
from fedcore.model.update import write_update
from fedcore.numbers.codecs import encoded
from fedcore.numbers.records import Record
from fedcore.round.header import UpdateHeader
from fedcore.round.plan import Plan
from fedcore.round.training.split import BEGINS, GOES_ON, TARGET_UNIT, TEXTS
from fedcore.weights.schema import LayerSpec, ModelSchema, TensorSpec

LABELS = TaskSection(kind="text-classification", labels=("a", "b", "c"), max_length=3)
WIDTH, TOKENS = 6, 1030
LAYERS = tuple(LayerSpec(f"h.{block}.{name}", 4, WIDTH) for block in range(3) for name in ("query", "out"))
SCHEMA = ModelSchema(LAYERS, (TensorSpec("score.weight", (3, WIDTH), False),))
JOB = """
run = "r"
[model]
folder = "model"
[task]
kind = "text-classification"
labels = ["a", "b"]
[method]
name = "split"
[broker]
url = "mqtts://localhost:8883"
"""


def plan_of(task: TaskSection = LABELS) -> Plan:
    training = server_half(SplitSettings(front=1, tokens=TOKENS)).training(1, 5)
    return make_plan(training=training, model_schema=SCHEMA, task=task)


def texts_of(*texts: tuple[int, float]) -> NDArray[np.float32]:
    """Lengths and targets, as they travel."""
    rows, start = np.zeros((2, TOKENS), np.float32), 0
    for length, target in texts:
        rows[:, start], rows[0, start + 1 : start + length] = (BEGINS, target / TARGET_UNIT), GOES_ON
        start += length
    return rows


def sent(path: Path, plan: Plan, texts: NDArray[np.float32], examples: int) -> None:
    shapes, values = plan.training.update_shapes(SCHEMA), {TEXTS: texts}
    header = UpdateHeader(
        run="r", round=plan.round, node="n", version=plan.version, examples=examples, loss=0.0, seconds=1.0
    )
    records = []
    for name, shape in shapes.items():
        coding = plan.training.coding(name)
        value = values.get(name, np.ones(shape, np.float32))
        records.append(Record(name, encoded(value, coding, name), coding.bits, kind=coding.kind))
    write_update(path, header, records)
    admit(path, plan, "r", "n", SafetySection())


def test_entries_are_the_backs_and_an_update_has_blocks_of_tokens() -> None:
    training = plan_of().training
    assert training.layer_shapes(SCHEMA) == {layer.name: (4, WIDTH) for layer in LAYERS[2:]}
    assert training.update_shapes(SCHEMA) == {
        "/activations/0": (1024, WIDTH),
        "/activations/1": (6, WIDTH),
        TEXTS: (2, TOKENS),
    }
    assert training.untouched(SCHEMA) == {layer.name for layer in LAYERS[2:]}
    back = training.worked
    assert back.update_shapes(SCHEMA) == training.shapes(SCHEMA) and not back.untouched(SCHEMA)
    assert (back.one_pass, back.steps, training.one_pass) == (False, 40, True)
    zero = PublishedState.zero(training, SCHEMA)
    assert not layer_update(training, zero, LAYERS[0]).any() and layer_update(training, zero, LAYERS[5]).shape == (4, 6)


def test_an_update_whose_texts_are_whole_is_taken(tmp_path: Path) -> None:
    sent(tmp_path / "u", plan_of(), texts_of((3, 0), (1, 2), (2, 1)), 3)
    scores = TaskSection(kind="regression", max_length=3)
    sent(tmp_path / "u", plan_of(scores), texts_of((3, 0.3), (1, -7.25)), 2)


@pytest.mark.parametrize(
    ("texts", "examples", "words"),
    [
        ([(3, 0), (1, 2)], 3, "2 texts of up to 3 tokens where 3 were announced"),
        ([(4, 0)], 1, "1 texts of up to 4 tokens"),
        ([], 1, "0 texts"),
        ([(3, 0), (1, 3)], 2, "a label that the task does not have"),
        ([(3, 0), (1, 0.5)], 2, "a label that the task does not have"),
    ],
)
def test_texts_that_mean_nothing_are_refused(
    texts: list[tuple[int, float]], examples: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UpdateRefused, match=words) as found:
        sent(tmp_path / "u", plan_of(), texts_of(*texts), examples)
    assert "n: " in found.value.one_line()


@pytest.mark.parametrize(("place", "mark"), [(0, GOES_ON), (1, 0.0), (2, 0.25), (1029, GOES_ON)])
def test_marks_that_mean_nothing_are_refused(place: int, mark: float, tmp_path: Path) -> None:
    texts = texts_of((3, 0), (1, 2))
    texts[0, place] = mark
    with pytest.raises(UpdateRefused, match="where 2 were announced"):
        sent(tmp_path / "u", plan_of(), texts, 2)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("front = 0", "front is 0"),
        ("tokens = 0", "tokens is 0"),
        ("noise = -1.0", "noise is -1.0"),
        ('work_memory = "100 MiB"', "less than the libraries take"),
        ('work_memory = "much"', "method.work_memory"),
    ],
)
def test_keys_that_mean_nothing_are_refused(keys: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.replace('"split"', f'"split"\n{keys}'))
    with pytest.raises(ConfigError, match=words):
        load_config(path, Job)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "text-classification"\nlabels = ["a", "b"]', 'kind = "causal-lm"', "are the texts themselves"),
        ("[broker]", '[head]\nstart = "ridge"\n[broker]', "trains the head at the coordinator"),
        ("[broker]", '[safety]\nrule = "median"\n[broker]', "each of a text that no other node has"),
        ("[broker]", '[round]\nkind = "buffered"\nbuffer_size = 1\n[broker]', "buffered"),
        (
            "[broker]",
            "[privacy.node]\nclip = 0.5\ndelta = 1e-3\nnoise_multiplier = 1.0\n[broker]",
            "each of a text that no other node has",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        load_config(path, Job)


def test_stored_tensors_stay_as_they_are() -> None:
    stored = ModelSchema(LAYERS, (TensorSpec("embeddings.norm.weight", (WIDTH,), True),))
    with pytest.raises(ConfigError, match=r"model.trained_tensors: embeddings.norm.weight would train whole"):
        plan_of().training.layer_shapes(stored)
