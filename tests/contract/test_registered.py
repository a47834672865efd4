# SPDX-License-Identifier: Apache-2.0
"""What every registered task, metric and method keeps, and what a job or plan hears that names another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest

from coordinator.job import Job
from edge_client.worker.data.reading import Example
from edge_client.worker.data.tasks import WorkerTask, worker_task
from edge_client.worker.train.evaluate import evaluate, metrics_by_name
from fedcore.config.reading import load_config
from fedcore.config.sections import TaskSection
from fedcore.config.tasks import task_of
from fedcore.errors import ConfigError, DataError, MalformedMessage
from fedcore.registry import METRICS, TASKS, metric_kind
from fedcore.wire.codec import decode, encode
from fedcore.wire.identity import SIGNATURE_BYTES
from fedcore.wire.messages import Envelope
from tests.fuzz.samples import PLAN

JOB = """
run = "r"
[model]
folder = "m"
[task]
kind = "{task}"
[method]
name = "{method}"
[broker]
url = "mqtts://host"
[evaluation]
source = "held.csv"
metrics = ["{metric}"]
"""
GOOD = {"task": "regression", "method": "fedavg", "metric": "pearson"}


def job(folder: Path, **changes: str) -> Job:
    path = folder / "job.toml"
    path.write_text(JOB.format(**GOOD | changes))
    return load_config(path, Job)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "regresion"}, "task.kind: no task 'regresion' (did you mean 'regression'?)"),
        ({"metric": "peerson"}, "evaluation.metrics: no metric 'peerson' (did you mean 'pearson'?)"),
        ({"method": "fedavgg"}, "method.name: invalid value 'fedavgg' (did you mean 'fedavg'?)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_job_with_an_unknown_name_is_one_line(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    assert job(tmp_path).evaluation is not None
    with pytest.raises(ConfigError) as found:
        job(tmp_path, **changes)
    line = found.value.one_line()
    assert line.startswith(str(tmp_path / "job.toml")) and words in line and "\n" not in line


def test_two_metrics_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.metrics: two metrics are named 'f1'"):
        job(tmp_path, metric='f1", "mine:f1')


@pytest.mark.parametrize("kind", ["singing", "x" * 1_000_000], ids=["short", "long"])
def test_a_plan_with_a_task_that_nobody_has_is_malformed(kind: str) -> None:
    raw: Any = msgspec.to_builtins(Envelope(run="r", round=1, node="", body=PLAN), builtin_types=(bytes,))
    raw["body"]["task"]["kind"] = kind
    assert decode(encode(Envelope(run="r", round=1, node="", body=PLAN))).body == PLAN
    with pytest.raises(MalformedMessage) as found:
        decode(bytes(SIGNATURE_BYTES) + msgpack.packb(raw))
    assert f"no task '{kind[:64]}" in found.value.message and len(found.value.message) < 400


class Tokenizer:
    """Three tokens for every text, and none that begins or ends one."""

    bos_token_id = eos_token_id = chat_template = None

    def __call__(self, *_: Any, **__: Any) -> dict[str, list[int]]:
        return {"input_ids": [1, 2, 3]}


@pytest.mark.parametrize("kind", TASKS.names())
def test_every_task_has_all_of_its_parts(kind: str) -> None:
    section = TaskSection(kind=kind, labels=("a", "b") if "classification" in kind else ())
    task, at_work = task_of(section), worker_task(section)
    assert isinstance(at_work, WorkerTask)
    target = at_work.sample_target
    assert (target is None) == (not task.labelled)
    if task.labelled:
        raw = "a" if section.labels else "0.5"
        assert type(task.target(raw, "row 1")) is type(target)
        with pytest.raises(DataError, match="row 1"):
            task.target("neither", "row 1")
    (encoded,) = at_work.encode(Example("words", None, target), Tokenizer())
    assert (encoded.ids, encoded.target) == ((1, 2, 3), target)
    assert at_work.shown(Example("words", None, target), Tokenizer()).tokens == 3


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_gives_a_finite_number_or_one_of_each_row(name: str) -> None:
    predictions, targets = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
    metric = metrics_by_name([name])[name]
    kind = metric_kind(metric)

    def value(said: Any, right: Any) -> float:
        if kind.compares == "texts":
            said, right = (list(map(str, side)) for side in (said, right))
        found = metric(said, right)
        if not kind.each:
            assert type(found) is float
            return found
        assert (found.shape, found.dtype) == (targets.shape, np.float64)
        return float(found.mean())

    assert 0 < value(predictions, targets) <= 1
    assert value(targets, targets) == pytest.approx(1)


def test_a_metric_by_path_is_found_and_a_wrong_one_is_named() -> None:
    (found,) = metrics_by_name(["fedcore.numbers.metrics:matthews"]).items()
    assert found == ("matthews", METRICS.get("matthews"))
    with pytest.raises(DataError, match=r"has no function 'mathews' \(did you mean 'matthews'\?\)"):
        metrics_by_name(["fedcore.numbers.metrics:mathews"])


@pytest.mark.parametrize(
    ("metric", "words"),
    [(lambda *_: float("nan"), "metric 'mine' gives nan"), (lambda *_: {}["x"], "metric 'mine' failed: KeyError: 'x'")],
    ids=["nan", "raises"],
)
def test_a_metric_that_fails_is_named(metric: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import edge_client.worker.train.evaluate as module
    from edge_client.worker.data.tasks import Encoded, Scores

    scores = Scores(np.ones(2), np.ones(2, np.int64), np.eye(2, dtype=np.float32))
    monkeypatch.setattr(module, "scores_of", lambda *_: scores)
    encoded = [Encoded((1,), None, 0), Encoded((1,), None, 1)]
    task = TaskSection(kind="text-classification", labels=("a", "b"))
    with pytest.raises(DataError, match=words):
        evaluate(None, encoded, task, 0, None, {"mine": metric})  # type: ignore[arg-type]
    accuracy, loss, found = evaluate(None, encoded, task, 0, None, {"mine": lambda *_: 0.5})  # type: ignore[arg-type]
    assert (accuracy, loss, found["mine"], found["f1"]) == (1, 1, 0.5, 1)
