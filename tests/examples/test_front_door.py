# SPDX-License-Identifier: Apache-2.0
"""The examples in Python: each is called as its program does, with a tiny model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer
from workshop import Workshop

from coordinator.provisioning.broker import LocalBroker
from edge_client.worker.answering.written import written
from examples.asyncio_client import events_of, work_beside
from examples.my_chat import NODES as TALKERS
from examples.my_chat import ask
from examples.my_chat import tune as teach
from examples.my_csv import NODES, tune
from examples.own_metric import tune_until, worst_recall
from fedcore.errors import ConfigError
from fedkrso import Coordinator, Job, ModelSection, RoundSection, TaskSection
from tests.edge_client.serving.tiny_chat import write_tiny_chat

pytestmark = pytest.mark.usefixtures("quick_workers")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_an_example_is_at_most_sixty_lines() -> None:
    ours = [path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".toml")]
    lines = {str(path.relative_to(EXAMPLES)): path.read_text().count("\n") for path in ours}
    assert len(lines) > 10
    main_jobs = ("voice_intents", "intent_calls")
    assert {name: count for name, count in lines.items() if count > 60 and not name.startswith(main_jobs)} == {}


def test_my_csv_and_my_model(workshop: Workshop, tmp_path: Path) -> None:
    result = tune(workshop.texts(0), str(workshop.model), tmp_path)
    assert result.finished and [row.participants for row in result.rounds] == [NODES] * 2
    assert {node["digest"] for node in result.summary["nodes"].values()} == {result.digest}
    assert result.accuracy is not None and result.report.exists()
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["id2label"] == {"0": "left", "1": "right"}


def test_my_chat_model_learns_its_rows_and_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"lamp {number}", "completion": "on" if number % 2 else "off"} for number in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = teach(tmp_path / "rows.jsonl", str(write_tiny_chat(tmp_path / "tiny")), tmp_path / "chat")
    assert result.finished and [row.participants for row in result.rounds] == [TALKERS] * 3
    losses = [float(line) for line in capsys.readouterr().out.split()]
    assert len(losses) == 3 and losses[-1] < losses[0]
    answer = ask(result, "lamp 3")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat" / "tuned")
    assert answer == written(tmp_path / "chat" / "tuned", TaskSection(kind="instruction"), ["lamp 3"], tokenizer)[0]


def test_a_metric_and_a_callback_of_ones_own(workshop: Workshop, tmp_path: Path, at_root: Path) -> None:
    result = tune_until(0.0, workshop.texts(0), workshop.texts(9), str(workshop.model), tmp_path)
    # Good enough after the first round, and so ended there.
    assert not result.finished and [row.round for row in result.rounds] == [1]
    assert 0 <= result.rounds[0].metrics["worst_recall"] <= 1
    assert worst_recall(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1])) == pytest.approx(1 / 3)


def node_file(workshop: Workshop, broker: LocalBroker, folder: Path) -> Path:
    path = folder / "node.toml"
    path.write_text(f"""\
node = "desk"
run = "asyncio"
model_folder = "{workshop.model}"
memory_budget = "3 GiB"
folder = "{folder / "desk"}"
threads = 1

[data]
source = "{workshop.texts(0)}"

{broker.sections("desk")}""")
    return path


def test_an_asyncio_program_goes_on_while_the_client_trains(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LocalBroker(tmp_path / "broker", ["coordinator", "desk"]) as broker:
        what = Job(
            run="asyncio",
            model=ModelSection(folder=str(workshop.model), schema_file=str(workshop.schema)),
            task=TaskSection(kind="text-classification", labels=("left", "right"), max_length=16),
            round=RoundSection(rounds=1),
            broker=broker.section("coordinator"),
        )
        path = node_file(workshop, broker, tmp_path)

        async def both() -> int:
            leader = Coordinator(what, runs=tmp_path / "runs")
            leading = asyncio.create_task(asyncio.to_thread(leader.run))
            turns = await work_beside(path)
            assert (await leading).finished
            return turns

        assert asyncio.run(both()) > 3
    assert "drawn from 24 examples" in capsys.readouterr().out


def test_what_a_client_ends_with_reaches_the_asyncio_program(tmp_path: Path) -> None:
    async def listen() -> None:
        async for _ in events_of(tmp_path / "nowhere.toml"):
            pass

    with pytest.raises(ConfigError, match="no such file"):
        asyncio.run(listen())
