# SPDX-License-Identifier: Apache-2.0
"""The doctor's checks of what a made-up machine can carry: memory, limits, swap, and every way of computing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from devices.base import Accelerator, Facts
from edge_client.doctor.compute import compute, worker
from edge_client.doctor.memory import memory
from edge_client.memory.group import MemoryGroup, Rlimit
from edge_client.process.route import Part, Timing
from tests.edge_client.doctor.made_up import JETSON, expect, node, surroundings, tree

MEMINFO = "MemTotal: 8000000 kB\nMemAvailable: {} kB\n"


SWAPS = "Filename\tType\tSize\tUsed\tPriority\n{}\tpartition\t1000\t0\t5\n"


def test_memory_that_is_short_limited_or_swapped_to_a_card(tmp_path: Path) -> None:
    low = tree(
        tmp_path / "low",
        {
            "proc/meminfo": MEMINFO.format(100_000),
            "proc/swaps": SWAPS.format("/dev/mmcblk0p3"),
            "proc/pressure/memory": "some avg10=43.00 avg60=1.00 avg300=1.00 total=1\n",
            "proc/self/limits": "Max address space         1000000         unlimited     bytes\n",
        },
    )
    found = memory(surroundings(low, facts=JETSON), node(memory_budget="2 GiB"))
    expect(found, "available", "error", "0.1 of 7.6 GiB", "close other programs")
    expect(found, "limits", "error", "RLIMIT_AS", "raise RLIMIT_AS")
    expect(found, "budget", "error", "", "raise")
    expect(found, "swap", "warning", "mmcblk0p3", "NVMe")
    expect(found, "pressure", "warning", "43.0 %")
    fine = tree(
        tmp_path / "fine", {"proc/meminfo": MEMINFO.format(6_000_000), "proc/swaps": SWAPS.format("/dev/zram0")}
    )
    found = memory(surroundings(fine, facts=JETSON), node(memory_budget="2 GiB"))
    for name in ("available", "limits", "budget", "pressure"):
        expect(found, name, "ok")
    expect(found, "swap", "warning", "zram", "nvzramconfig")
    expect(memory(surroundings(fine), None), "swap", "ok", "/dev/zram0")
    if sys.platform == "linux":
        expect(found, "worker's limit", "warning", "rlimit", "client install")


class _Broken(Rlimit):
    def prepare(self) -> None:
        raise OSError("not here")


def test_a_limit_that_no_process_can_enter(tmp_path: Path) -> None:
    broken: Callable[..., MemoryGroup] = lambda size, name, root: _Broken(size)  # noqa: E731
    expect(memory(surroundings(tmp_path, confine=broken), None), "worker's limit", "error", "no process can be started")
    expect(memory(surroundings(tmp_path), None), "available", "warning", "does not tell")


def timing(dtype: str, device: str, problem: str = "") -> Timing:
    return Timing(
        torch_device=device,
        compute_dtype=dtype,
        forward_seconds=(0.001, 0.03),
        backward_seconds=(0.001, 0.03),
        error=0.0,
        problem=problem,
    )


def test_every_way_of_computing_with_its_mismatch_and_the_route(tmp_path: Path) -> None:
    asked: list[str] = []
    parts = {
        "cpu": Part(
            timings=(timing("float32", "cpu"), timing("bfloat16", "cpu", "it ended the process (signal 4, SIGILL)"))
        ),
        "cuda": Part(
            timings=(timing("float32", "cuda", "named symbol not found"),),
            facts={"cuda": "13.0", "built for": "sm_80 sm_90"},
        ),
        "bitsandbytes-cpu": Part(timings=(timing("int8", "cpu"),)),
        "bitsandbytes-cuda": Part(timings=(timing("int8", "cuda", "named symbol not found"),)),
    }

    def probe(name: str, threads: int, environment: Mapping[str, str]) -> Part:
        asked.append(name)
        return parts[name]

    around = surroundings(
        tmp_path, facts=JETSON, quick=False, probe=probe, environment={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    )
    found = compute(around, None)
    expect(found, "float32 on cpu", "ok", "forward + backward small 1.0 + 1.0 ms, large 30.0 + 30.0 ms")
    expect(found, "bfloat16 on cpu", "warning", "SIGILL")
    expect(
        found,
        "float32 on cuda",
        "warning",
        "named symbol not found",
        "made for this JetPack, not the one from PyPI, which is for servers",
    )
    expect(found, "float32 on cuda", "warning", "", "(this one is for CUDA 13.0, the system has 12.6)")
    expect(found, "bitsandbytes on cpu", "ok")
    expect(found, "bitsandbytes on cuda", "warning", "named symbol", "our own")
    expect(found, "route", "ok", "float32 on cpu: bfloat16: it ended the process")
    assert asked == list(parts)
    # What is remembered is shown at once, also with --quick; a node that names the device has an error.
    named = compute(
        surroundings(tmp_path, facts=JETSON, probe=probe, environment=around.environment), node(torch_device="cuda")
    )
    assert asked == list(parts)
    expect(named, "float32 on cuda", "error", "named symbol")
    expect(named, "route", "error", "CUDA does not work", "fedkrso doctor")
    x86 = msgspec.structs.replace(
        parts["cuda"], facts={"cuda": "12.8", "built for": "sm_80 sm_90", "compute capability": "12.0"}
    )
    parts["cuda"] = x86
    gpu = Facts("laptop", "laptop", accelerator=Accelerator("RTX", False, (12, 0)))
    again = compute(
        surroundings(tmp_path, facts=gpu, quick=False, again=True, probe=probe, environment=around.environment), None
    )
    expect(again, "float32 on cuda", "warning", "", "built for sm_80 sm_90; the GPU needs sm_120")


def test_what_was_never_measured_is_not_measured_in_a_hurry(tmp_path: Path) -> None:
    def never(*_: object) -> Part:
        raise AssertionError("it measures")

    found = compute(surroundings(tmp_path, probe=never), None)
    expect(found, "cpu", "ok", "not measured yet")
    expect(found, "route", "ok", "not measured yet")


def test_a_workers_libraries_are_loaded_once_for_their_versions(tmp_path: Path) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f"#!/bin/sh\necho x >> {calls}\n")
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path), "FEDKRSO_WORKER_PYTHON": str(python)}
    for again, expected in ((False, 1), (False, 1), (True, 2)):
        found = worker(surroundings(tmp_path, quick=False, again=again, environment=environment))
        expect(found, "worker", "ok", "its libraries load")
        assert len(calls.read_text().split()) == expected
    assert worker(surroundings(tmp_path, environment=environment)) == []
    python.write_text("#!/bin/sh\necho cannot load libtorch >&2\nexit 1\n")
    expect(
        worker(surroundings(tmp_path, quick=False, again=True, environment=environment)),
        "worker",
        "error",
        "libtorch",
        "pip",
    )
