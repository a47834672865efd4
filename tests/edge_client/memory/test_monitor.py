# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from edge_client.memory.monitor import Advice, Monitor, Reading

MIB = 2**20


def reading(at: float, worker: int | None, available: int | None = 8000, pressure: float | None = 0.0) -> Reading:
    return Reading(
        at_seconds=at,
        agent_bytes=40 * MIB,
        worker_bytes=None if worker is None else worker * MIB,
        device_available_bytes=None if available is None else available * MIB,
        device_total_bytes=16_000 * MIB,
        pressure_percent=pressure,
    )


def test_below_the_soft_limit_nothing_happens_and_the_peak_is_kept() -> None:
    monitor = Monitor(1000 * MIB)
    assert [monitor.take(reading(t, w)) for t, w in ((0, 100), (1, 900), (2, 300))] == [Advice.FINE] * 3
    assert monitor.peak_bytes == 940 * MIB
    assert monitor.take(reading(3, None)) is Advice.FINE


def test_above_it_the_worker_steps_down_once_and_gets_time() -> None:
    monitor = Monitor(1000 * MIB)
    assert monitor.take(reading(0, 935)) is Advice.STEP_DOWN
    assert "975 MiB used" in monitor.reason
    assert monitor.take(reading(1, 935)) is Advice.FINE, "it has not reached a micro-batch yet"
    monitor.stepped_down(4)
    assert monitor.take(reading(5, 940)) is Advice.FINE, "what the step freed has not shown yet"
    assert monitor.take(reading(10, 940)) is Advice.STEP_DOWN


def test_a_worker_over_its_budget_that_does_not_step_down_is_ended() -> None:
    monitor = Monitor(1000 * MIB)
    assert monitor.take(reading(0, 1100)) is Advice.STEP_DOWN
    assert monitor.take(reading(6, 1100)) is Advice.END


def test_a_lower_budget_counts_at_once() -> None:
    monitor = Monitor(1000 * MIB)
    assert monitor.take(reading(0, 700)) is Advice.FINE
    monitor.set_budget(700 * MIB)
    assert monitor.take(reading(0.5, 700)) is Advice.STEP_DOWN


def test_what_others_take_counts_and_unknown_readings_do_not() -> None:
    assert Monitor(1000 * MIB).take(reading(0, 100, available=150)) is Advice.STEP_DOWN
    assert Monitor(1000 * MIB).take(reading(0, 100, pressure=60.0)) is Advice.STEP_DOWN
    assert Monitor(1000 * MIB).take(reading(0, 100, available=None, pressure=None)) is Advice.FINE


def test_a_reading_in_words() -> None:
    assert (
        reading(0, 100, 800, 3.0).described()
        == "agent and worker 140 MiB, 800 MiB available on the device, memory pressure 3 %"
    )
