# SPDX-License-Identifier: Apache-2.0
"""Bytes and seconds of a text for each way to answer it: mosquitto with certificates and signatures, the oracle as a
process, two devices as this one; then with the oracle killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil

from coordinator.provisioning.broker import LocalBroker
from edge_client.answers.asker import Asker, Given
from edge_client.node import Node
from edge_client.owner.asking import AskSection
from fedcore.config.sections import DataSection

__all__ = ["through_a_broker"]

_DEADLINE_SECONDS = 60.0
_SHORT_SECONDS = 1.0
_START_SECONDS = 300.0
_AT_LAST = 20
"""Texts for the oracle that is gone: each takes the deadline."""
_ALONE = 2.0
"""No two texts are so alike."""


def through_a_broker(small: Path, large: Path, blocks: int, texts: Sequence[str], folder: Path) -> None:
    """Print a line for each way to answer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    nodes = ("kitchen", "porch")
    with LocalBroker(folder / "broker", ("coordinator", *nodes), kind="mosquitto", tls=True, run="r") as broker:
        lines = ['run = "r"', f'[model]\nfolder = "{large}"', '[task]\nkind = "text-classification"']
        lines += ['labels = ["0", "1"]', broker.sections("coordinator")]
        (folder / "job.toml").write_text("\n".join(lines), encoding="utf-8")
        program = [sys.executable, "-c", "from fedcore.command import main; main()", "coordinator", "oracle"]
        options = [str(folder / "job.toml"), "--model", str(large), "--blocks", str(blocks), "--runs", str(folder)]
        options += ["--threads", "1"]
        oracle = subprocess.Popen(program + options)
        try:
            _Ways(small, broker, folder, oracle).print(texts)
        finally:
            oracle.kill()
            oracle.wait()


class _Ways:
    def __init__(self, small: Path, broker: LocalBroker, folder: Path, oracle: subprocess.Popen[bytes]) -> None:
        self._small, self._broker, self._folder, self._oracle = small, broker, folder, oracle

    def print(self, texts: Sequence[str]) -> None:
        """Device, coordinator, peer, and the device alone again."""
        head = "by | seconds, median | 90 of 100 | processor seconds, device | coordinator | bytes up | bytes down"
        print(f"\n| {len(texts)} texts, one by one | {head} |")
        print(f"|---|{'---|' * 7}", flush=True)
        pairs = [(text, None) for text in texts]
        with self._asker("kitchen", threshold=1.0) as asker:
            self._line("the small model alone", lambda: asker.ask(pairs))
        # The second device hears what the first one's texts came to, and then has them itself.
        with self._asker("porch", threshold=0.0, deadline_seconds=_DEADLINE_SECONDS) as peer:
            with self._asker("kitchen", least_similarity=_ALONE, deadline_seconds=_DEADLINE_SECONDS) as asker:
                for one in (peer, asker):
                    one.wait(_START_SECONDS, rounds=1)
                self._line("everything asked", lambda: asker.ask(pairs))
            peer.wait(_SHORT_SECONDS)
            self._line("a peer asked it before", lambda: peer.ask(pairs))
        with self._asker("kitchen", least_similarity=_ALONE, deadline_seconds=_SHORT_SECONDS) as asker:
            asker.wait(_START_SECONDS, rounds=1)
            self._oracle.kill()
            self._oracle.wait()
            self._line("the oracle killed", lambda: asker.ask(pairs[:_AT_LAST]))

    def _asker(self, node: str, *, threshold: float = 0.0, **keys: float) -> Asker:
        section = AskSection(model=str(self._small), threshold=threshold, **keys)  # type: ignore[arg-type]
        broker = self._broker
        return Asker(
            Node(
                node=node,
                run="r",
                model_folder="none",
                data=DataSection(source="none"),
                broker=broker.section(node),
                trust=broker.trust(node),
                folder=str(self._folder / node),
                threads=1,
                ask=section,
            )
        )

    def _line(self, words: str, answer: Callable[[], Sequence[Given]]) -> None:
        theirs = {child.pid for child in _with_children(self._oracle.pid)}
        before = self._taken(theirs)
        given = answer()
        mine, coordinator = ((now - then) / len(given) for now, then in zip(self._taken(theirs), before, strict=True))
        seconds = np.array([one.seconds for one in given])
        up, down = (np.mean([getattr(one, name) for one in given]) for name in ("sent_bytes", "received_bytes"))
        by = ", ".join(sorted({one.said.by + (f" ({one.said.why})" if one.said.why else "") for one in given}))
        middle, most = np.median(seconds), np.quantile(seconds, 0.9)
        taken = f"{middle:.3f} | {most:.3f} | {mine:.3f} | {coordinator:.3f}"
        print(f"| {words} | {by} | {taken} | {up:,.0f} | {down:,.0f} |", flush=True)

    def _taken(self, theirs: set[int]) -> tuple[float, float]:
        """Processor seconds: of this process with its workers and the broker, and of the oracle with its own."""
        mine = sum(_seconds(one) for one in _with_children(psutil.Process().pid) if one.pid not in theirs)
        return mine, sum(_seconds(one) for one in _with_children(self._oracle.pid))


def _with_children(pid: int) -> list[psutil.Process]:
    """A process and all that it began; none where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
