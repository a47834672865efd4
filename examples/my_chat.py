# SPDX-License-Identifier: Apache-2.0
"""A chat model of my own: two nodes teach it what their rows answer, and it is asked when they are done.

    python -m examples.my_chat rows.jsonl path/to/model "Who waters the plants?"

A row is `{"prompt": ..., "completion": ...}` or `{"messages": [...]}`; the model is a folder of a language model, such
as SmolLM2-135M-Instruct."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedkrso import Client, Coordinator, Job, LocalBroker, ModelSection, Result, RoundSection, TaskSection

__all__ = ["NODES", "ask", "job", "tune"]

NODES = ("alice", "bob")


def job(model: str, broker: LocalBroker, rounds: int = 3) -> Job:
    """What is learned: what the assistant says in each row, with everybody in each round."""
    return Job(
        run="my-chat",
        model=ModelSection(folder=model),
        task=TaskSection(kind="instruction", max_length=256),
        round=RoundSection(rounds=rounds, min_nodes=len(NODES), quorum=len(NODES)),
        broker=broker.section("coordinator"),
    )


def tune(data: Path, model: str, folder: Path) -> Result:
    """Teach a model the rows of a JSON lines file, each node its half of them; the tuned model is a folder too."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines() if line]
    same: dict[str, Any] = {"run": "my-chat", "model_folder": model, "memory_budget": "3 GiB", "threads": 1}
    with LocalBroker(folder / "broker", ["coordinator", *NODES]) as broker, ExitStack() as nodes:
        for index, name in enumerate(NODES):
            mine, own = rows[index :: len(NODES)], str(folder / name)
            nodes.enter_context(Client(name, broker=broker.section(name), folder=own, data=mine, **same))
        leader = Coordinator(job(model, broker), runs=folder / "runs", on_round=lambda row: print(row.train_loss))
        result = leader.run()
    result.export(folder / "tuned")
    return result


def ask(result: Result, question: str) -> str:
    """What the tuned model answers. `fedkrso chat --model my-chat/tuned` goes on from there."""
    return str(result.ask(question)[0])


if __name__ == "__main__":
    print(ask(tune(Path(sys.argv[1]), sys.argv[2], Path("my-chat")), sys.argv[3]))
