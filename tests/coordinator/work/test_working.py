# SPDX-License-Identifier: Apache-2.0
"""A round's work in a process of its own: done once, whatever is killed, and never beyond its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from method_runs import Run, values_of

from coordinator.store.ledger import SqliteLedger, UpdateRow
from coordinator.work.order import Order
from coordinator.work.working import Done, Working, performed
from edge_client.worker.programs.files import worked
from fedcore.errors import FedkrsoError, WorkerError
from fedcore.methods.split import SplitSettings
from fedcore.numbers.clip import Clip
from tests.patience import until


def orders_of(make_llama: Callable[..., Path], folder: Path) -> Callable[..., Order]:
    """Makes orders of one round's updates, as a job's share and limits would have them."""
    settings = SplitSettings(front=1, tokens=1400, steps=8, interval_steps=2, batch_size=4, learning_rate=1e-2)
    run = Run(settings, make_llama(), folder)
    updates = [run.train(name, run.replica(name), number) for number, name in enumerate(("a", "b"))]

    def made(share: str = "examples", clip: Clip | None = None) -> Order:
        files = [str(update.path.relative_to(run.own)) for update in updates]
        rows = [UpdateRow("", file, 1, one.header, clip=clip) for file, one in zip(files, updates, strict=True)]
        plan = run.plan(1)
        training = msgspec.structs.replace(plan.training, share=share)
        order = run.model.order(msgspec.structs.replace(plan, training=training), rows[::-1])
        assert order is not None
        return order

    return made


def order_of(make_llama: Callable[..., Path], folder: Path) -> Order:
    return orders_of(make_llama, folder)()


def waited(working: Working) -> Order:
    done = until(working.done, ())
    assert done is not None
    return done


def test_what_the_job_lets_a_node_weigh_is_how_many_of_its_texts_count(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    made = orders_of(make_llama, tmp_path)
    plain, uniform, clipped = made(), made("uniform"), made(clip=Clip(1, 2))
    assert [(part.header.node, part.examples) for part in plain.command.parts] == [("a", 32), ("b", 34)]
    assert [part.examples for part in uniform.command.parts] == [32, 32]
    assert [part.examples for part in clipped.command.parts] == [8, 8]
    assert len({order.command.key for order in (plain, uniform, clipped)}) == 3


def test_work_that_is_in_the_ledger_is_done_no_second_time(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    order, ledger = order_of(make_llama, tmp_path / "run"), SqliteLedger(tmp_path / "ledger.sqlite")
    worked(order.command)
    ledger.put_fact("work", Done.of(order))
    working = Working(ledger)
    working.begin(order)
    assert working.done() is order and working.done() is None
    assert not order.log.exists(), "no process was started"
    ledger.close()


@pytest.mark.slow
def test_work_ends_the_same_in_a_process_that_was_killed(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    order, ledger = order_of(make_llama, tmp_path / "run"), SqliteLedger(tmp_path / "ledger.sqlite")
    performed(order)
    whole = values_of(order.path)
    order.path.unlink()
    working = Working(ledger)
    working.begin(order)
    assert working._worker is not None
    working._worker.kill()
    with pytest.raises(WorkerError, match=r"the work of round 1 ended with -9.*method.work_memory"):
        waited(working)
    working.stop()
    # The next life of the coordinator.
    again = Working(ledger)
    again.begin(order)
    assert waited(again) is order
    found = values_of(order.path)
    assert found.keys() == whole.keys() and all(np.array_equal(found[name], whole[name]) for name in whole)
    # Damaged since: it is done anew.
    order.path.write_bytes(order.path.read_bytes()[:-1])
    third = Working(ledger)
    third.begin(order)
    assert third.done() is None
    assert waited(third) is order and values_of(order.path).keys() == whole.keys()
    ledger.close()


@pytest.mark.slow
def test_work_never_takes_more_than_its_memory(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    order = order_of(make_llama, tmp_path / "run")
    with pytest.raises(FedkrsoError):
        performed(Order(order.updates, msgspec.structs.replace(order.command), 2**26))
