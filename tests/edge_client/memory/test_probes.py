# SPDX-License-Identifier: Apache-2.0
"""Memory readings: every kernel's files, the sampler between exact readings, and what a sample costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_client.memory.probes import (
    Pressure,
    ProcessMemory,
    Sampler,
    available_bytes,
    own_peak_rss_bytes,
    own_rss_bytes,
    pressure,
    process_bytes,
    process_memory,
    swap_in_pages,
    total_bytes,
)

KB = 1024
ROLLUP = "00-ff ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPss: 800 kB\nPss_Anon: 500 kB\nPss_File: 250 kB\nPss_Shmem: 50 kB\nSwapPss: 7 kB\n"
STATUS = "Name: x\nVmRSS:  900 kB\nRssAnon: 600 kB\nRssFile: 290 kB\nRssShmem: 10 kB\nVmSwap: 8 kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"smaps_rollup": ROLLUP, "status": STATUS}, ProcessMemory(800 * KB, 500 * KB, 300 * KB, 7 * KB)),
        # Linux 4.14 to 5.2: a proportional size without its kinds.
        (
            {"smaps_rollup": "x\nPss: 800 kB\nSwapPss: 7 kB\n", "status": STATUS},
            ProcessMemory(800 * KB, 600 * KB, 300 * KB, 7 * KB),
        ),
        ({"smaps_rollup": "x\nPss: 800 kB\n"}, ProcessMemory(800 * KB, None, None, None)),
        # Before 4.14.
        ({"status": STATUS}, ProcessMemory(900 * KB, 600 * KB, 300 * KB, 8 * KB)),
        ({"status": "Name: x\nVmRSS:  900 kB\n"}, ProcessMemory(900 * KB, None, None, None)),
        # A kernel thread, or one that has just ended.
        ({"status": "Name: x\n"}, None),
        ({}, None),
    ],
)
def test_a_process_on_every_kernel(tmp_path: Path, files: dict[str, str], expected: ProcessMemory | None) -> None:
    assert process_memory(7, write(tmp_path, {f"proc/7/{name}": text for name, text in files.items()})) == expected


def test_own_readings_agree() -> None:
    own, peak = process_memory(os.getpid()), own_peak_rss_bytes()
    assert own is not None and own.total_bytes > 10**6
    assert peak is not None and peak >= 0.9 * own_rss_bytes() and (process_bytes(os.getpid()) or 0) > 10**6


def test_who_is_gone_has_no_memory() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert process_bytes(child.pid) is None and Sampler(child.pid).sample() is None


def test_pressure_of_the_group_comes_before_the_device_s(tmp_path: Path) -> None:
    group = tmp_path / "group"
    assert pressure(group, tmp_path) is None
    write(tmp_path, {"proc/pressure/memory": "some avg10=1.00 avg60=0 avg300=0 total=0\n"})
    assert pressure(group, tmp_path) == Pressure(1.0, None), "what is not counted is unknown, not zero"
    write(
        tmp_path,
        {
            "group/memory.pressure": "some avg10=12.50 avg60=1 avg300=0 total=5\nfull avg10=2.00 avg60=0 avg300=0 total=1\n"
        },
    )
    assert pressure(group, tmp_path) == Pressure(12.5, 2.0) and pressure(root=tmp_path) == Pressure(1.0, None)


def test_the_device_s_readings_and_none_where_there_are_none(tmp_path: Path) -> None:
    assert (available_bytes(tmp_path), total_bytes(tmp_path), swap_in_pages(tmp_path)) == (None, None, None)
    write(
        tmp_path,
        {"proc/meminfo": "MemTotal:  8 kB\nMemAvailable: 4 kB\n", "proc/vmstat": "pgpgin 5\npswpin 12\npswpout 3\n"},
    )
    assert (available_bytes(tmp_path), total_bytes(tmp_path), swap_in_pages(tmp_path)) == (4 * KB, 8 * KB, 12)


class Clocks:
    """Time that passes when told; an exact reading takes 3 ms of processor time."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.readings = 0

    def processor(self) -> float:
        self.readings += 1
        return 0.003 * (self.readings // 2)


def test_the_sampler_follows_growth_between_exact_readings(tmp_path: Path) -> None:
    write(tmp_path, {"proc/7/smaps_rollup": ROLLUP, "proc/7/status": STATUS})
    clocks = Clocks()
    sampler = Sampler(7, tmp_path, share=0.003, clock=lambda: clocks.seconds, processor_clock=clocks.processor)
    assert sampler.sample() == ProcessMemory(800 * KB, 500 * KB, 300 * KB, 7 * KB)
    grown = STATUS.replace("900", "1000").replace("600", "700")
    write(tmp_path, {"proc/7/status": grown, "proc/7/smaps_rollup": ROLLUP.replace("800", "1"), "proc/7/x": ""})
    clocks.seconds += 0.9
    assert sampler.sample() == ProcessMemory(900 * KB, 600 * KB, 300 * KB, 7 * KB), (
        "not read again within its share of a core"
    )
    clocks.seconds += 0.2
    exact = sampler.sample()
    assert exact is not None and exact.total_bytes == KB, "read again when that has been earned"


def test_the_sampler_says_none_when_the_process_is_gone(tmp_path: Path) -> None:
    write(tmp_path, {"proc/7/smaps_rollup": ROLLUP, "proc/7/status": STATUS})
    sampler = Sampler(7, tmp_path, clock=lambda: 0.0, processor_clock=iter([0.0, 1.0, 1.0, 1.0]).__next__)
    assert sampler.sample() is not None
    for path in (tmp_path / "proc/7").iterdir():
        path.unlink()
    assert sampler.sample() is None


def test_a_sample_of_a_large_process_costs_less_than_a_hundredth_of_a_core() -> None:
    program = "x = b'1' * (500 * 2**20)\nprint('here', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "here\n"
        seconds = iter(range(1000))
        sampler = Sampler(child.pid, clock=lambda: float(next(seconds)))
        started = time.thread_time()
        readings = [(sampler.sample(), pressure(), available_bytes()) for _ in range(60)]
        # Sixty seconds pass on the sampler's clock; its share is 0.003, and a busy machine may take thrice as long.
        assert (time.thread_time() - started) / 60 < 0.01
        assert all(found is not None and found.total_bytes > 500 * 2**20 for found, _, _ in readings)
        child.stdin.write("\n")
