# SPDX-License-Identifier: Apache-2.0
"""The real coordinator with a real S3 server, and nodes that put what they like: the digest is that of what was
offered."""

from __future__ import annotations

import queue
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from coordinator.job import SafetySection
from coordinator.objects.s3 import S3Store
from fedcore.round.plan import Plan
from fedcore.wire.files import manifest_of, read_chunk
from fedcore.wire.messages import Commit, Grant, Offer, Refuse
from tests.coordinator.messages.one_round import HONEST, WAIT_SECONDS, Node, Run, Write
from tests.s3 import S3, needs_s3

Spoil = Callable[[bytes], "bytes | None"]


class Putting(Node):
    """A node that puts its update into the store, or what a liar makes of it."""

    spoil: Spoil = staticmethod(lambda data: data)
    ways: list[str]
    """How each update was asked for."""

    def send(self, plan: Plan, path: Path, write: Write) -> str:
        self.post.run_id, self.ways = plan.run_id, []
        write(path, self.header(plan))
        manifest, way = manifest_of(path, 1024), "store"
        transfer, deadline = f"{plan.round}-{manifest.sha256[:8]}", time.monotonic() + WAIT_SECONDS
        while True:
            self.say(plan, Offer(transfer, manifest, way))  # type: ignore[arg-type]
            try:
                said = self.inbox.get(timeout=1.0)
            except queue.Empty:
                assert time.monotonic() < deadline, "the coordinator does not answer"
                continue
            match said:
                case Grant(address=address) if address and way == "store":
                    self.ways.append("store")
                    data = self.spoil(path.read_bytes())
                    if data is not None:
                        with urllib.request.urlopen(urllib.request.Request(address, data=data, method="PUT")):
                            pass
                    way = "stored"
                case Grant(address="") if way != "chunks":
                    self.ways.append("chunks")
                    for index in range(manifest.chunks):
                        self.say(plan, read_chunk(path, transfer, index, 1024))
                    way = "chunks"
                case Commit():
                    return ""
                case Refuse(_, reason):
                    return reason


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    needs_s3()
    with S3() as found:
        yield found


def _went(folder: Path, s3: S3, spoil: Spoil) -> Run:
    """A run whose nodes put into the store, and end with the digest of one that never heard of it."""
    plain, run = Run(folder / "plain"), Run(folder / "run")
    plain.go(HONEST, SafetySection())
    run.objects = msgspec.structs.replace(s3.settings(), uploads=True)
    run.made_of = type("_Putting", (Putting,), {"spoil": staticmethod(spoil)})
    assert set(run.go(HONEST, SafetySection()).values()) == {""}
    assert run.view.digest == plain.view.digest != ""
    (row,), size = run.ledger.rounds(), sum(update.size_bytes for update in run.ledger.updates(1))
    assert row.uplink_bytes > size and not list(run.files.updates.glob("*/*.fetched"))
    plain.ledger.close()
    return run


def _ways(run: Run) -> list[list[str]]:
    return [node.ways for node in run.nodes.values() if isinstance(node, Putting)]


@pytest.mark.slow
def test_updates_come_by_way_of_the_store_and_none_is_left_there(s3: S3, tmp_path: Path) -> None:
    run = _went(tmp_path, s3, lambda data: data)
    assert _ways(run) == [["store"]] * len(HONEST)
    (told,) = [text for _, kind, _, text in run.ledger.events() if kind == "objects"]
    assert told == f"{len(HONEST)} updates came by way of the store"
    (row,), size = run.ledger.rounds(), sum(update.size_bytes for update in run.ledger.updates(1))
    assert row.uplink_bytes < size + 3000, "words alone came through the broker"
    store, run_id = S3Store(s3.settings()), run.ledger.fact("run_id", str)
    assert not list(store.names(f"t/{run_id}-updates"))
    assert list(store.names(f"t/{run_id}")), "published states are left alone"
    run.ledger.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil", [lambda data: data[::-1], lambda data: data * 9, lambda data: data[:-1], lambda data: None],
    ids=["others", "more", "less", "none"],
)  # fmt: skip
def test_what_a_liar_puts_counts_for_nothing(spoil: Spoil, s3: S3, tmp_path: Path) -> None:
    run = _went(tmp_path, s3, spoil)
    assert _ways(run) == [["store", "chunks"]] * len(HONEST)
    assert "objects" not in run.said("objects")
    run.ledger.close()


@pytest.mark.slow
def test_a_store_that_dies_once_it_has_them_costs_time_alone(tmp_path: Path) -> None:
    needs_s3()
    with S3() as s3:

        def killing(data: bytes) -> bytes | None:
            s3.kill()
            return None

        run = _went(tmp_path, s3, killing)
        assert _ways(run)[0] == ["store", "chunks"]
        assert any("the broker brings updates" in text for _, kind, _, text in run.ledger.events() if kind == "objects")
        run.ledger.close()
