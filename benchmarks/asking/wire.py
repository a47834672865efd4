# SPDX-License-Identifier: Apache-2.0
"""Bytes and seconds of a text that is asked: mosquitto with certificates and signatures, the oracle as a process, the
device as this one; then with the oracle killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coordinator.provisioning.broker import LocalBroker
from edge_client.answers.asker import Asker, Given
from edge_client.node import Node
from edge_client.owner.asking import AskSection
from fedcore.config.sections import DataSection

__all__ = ["through_a_broker"]

_DEADLINE_SECONDS = 10.0
_SHORT_SECONDS = 1.0
_START_SECONDS = 300.0


def through_a_broker(small: Path, large: Path, blocks: int, texts: Sequence[str], folder: Path) -> None:
    """Print a line for each way to answer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pairs = [(text, None) for text in texts]
    with LocalBroker(folder / "broker", ("coordinator", "kitchen"), kind="mosquitto", tls=True, run="r") as broker:
        lines = ['run = "r"', f'[model]\nfolder = "{large}"', '[task]\nkind = "text-classification"']
        lines += ['labels = ["0", "1"]', broker.sections("coordinator")]
        (folder / "job.toml").write_text("\n".join(lines), encoding="utf-8")
        program = [sys.executable, "-c", "from fedcore.command import main; main()", "coordinator", "oracle"]
        options = [str(folder / "job.toml"), "--model", str(large), "--blocks", str(blocks), "--runs", str(folder)]
        oracle = subprocess.Popen(program + options)
        try:
            print(f"\n| {len(texts)} texts, one by one | by | seconds, median | 90 of 100 | bytes up | bytes down |")
            print("|---|---|---|---|---|---|")
            for words, section in (
                ("the small model alone", AskSection(model=str(small), threshold=1.0)),
                ("everything asked", _asking(small, _DEADLINE_SECONDS)),
                ("the oracle killed", _asking(small, _SHORT_SECONDS)),
            ):
                with Asker(_node(broker, folder, section)) as asker:
                    asker.wait(_START_SECONDS if words != "the oracle killed" else 3.0, rounds=1)
                    if words == "the oracle killed":
                        oracle.kill()
                        oracle.wait()
                    _line(words, asker.ask(pairs if words != "the oracle killed" else pairs[:20]))
        finally:
            oracle.kill()
            oracle.wait()


def _asking(small: Path, deadline_seconds: float) -> AskSection:
    return AskSection(model=str(small), threshold=0.0, least_similarity=2.0, deadline_seconds=deadline_seconds)


def _node(broker: LocalBroker, folder: Path, section: AskSection) -> Node:
    return Node(
        node="kitchen",
        run="r",
        model_folder="none",
        data=DataSection(source="none"),
        broker=broker.section("kitchen"),
        trust=broker.trust("kitchen"),
        folder=str(folder / "kitchen"),
        threads=1,
        ask=section,
    )


def _line(words: str, given: Sequence[Given]) -> None:
    seconds = np.array([one.seconds for one in given])
    up, down = (np.mean([getattr(one, name) for one in given]) for name in ("sent_bytes", "received_bytes"))
    by = ", ".join(sorted({one.said.by + (f" ({one.said.why})" if one.said.why else "") for one in given}))
    middle, most = np.median(seconds), np.quantile(seconds, 0.9)
    print(f"| {words} | {by} | {middle:.3f} | {most:.3f} | {up:,.0f} | {down:,.0f} |", flush=True)
