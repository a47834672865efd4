# SPDX-License-Identifier: Apache-2.0
"""Enclosures with the real kernel: who allocates beyond the limit is killed or refused, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.memory.cgroups import memory_cgroup
from edge_client.memory.enclosure import V1, V2, Enclosure, Rlimit, enclose

MIB = 2**20
GREEDY = "import sys\nx = bytearray(int(sys.argv[1]) * 2**20)\nprint(len(x))"
READER = "import mmap,sys\nf=open(sys.argv[1],'rb')\nm=mmap.mmap(f.fileno(),0,prot=1)\nprint(sum(m[i] for i in range(0,len(m),4096)))"
PATIENT = (
    "import sys\nx = bytearray(100 * 2**20)\nprint('here', flush=True)\nsys.stdin.readline()\ny = bytearray(100 * 2**20)\nprint('more')"
)


def run(enclosure: Enclosure, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=enclosure.prepare, timeout=60)


@pytest.fixture
def cgroup() -> Iterator[Enclosure]:
    made = enclose(150 * MIB, f"fedkrso-test-{os.getpid()}")
    if made.kind == "rlimit":
        pytest.skip("no memory cgroup can be made here (root, or a delegated one)")
    yield made
    made.close()
    made.close()


def test_the_kernel_ends_who_takes_too_much(cgroup: Enclosure) -> None:
    assert run(cgroup, GREEDY, 60).returncode == 0 and cgroup.kills() == 0
    assert run(cgroup, GREEDY, 400).returncode == -signal.SIGKILL
    assert cgroup.kills() == 1
    peak = cgroup.peak_bytes()
    assert peak is None or 60 * MIB < peak <= 150 * MIB


def test_a_mapped_file_larger_than_the_limit_can_be_read(cgroup: Enclosure, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(MIB))
    assert run(cgroup, READER, large).returncode == 0
    assert cgroup.kills() == 0


def test_a_limit_can_be_lowered_and_raised_while_the_worker_runs(cgroup: Enclosure) -> None:
    command = [sys.executable, "-S", "-c", PATIENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=cgroup.prepare) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "here\n"
        cgroup.set_limit(50 * MIB)
        assert child.poll() is None, "a limit below its use is refused, not a death sentence"
        cgroup.set_limit(300 * MIB)
        assert cgroup.limit_bytes == 300 * MIB
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "more\n"


def test_an_rlimit_refuses_the_allocation() -> None:
    enclosure = Rlimit(100 * MIB)
    assert run(enclosure, GREEDY, 60).returncode == 0
    refused = run(enclosure, GREEDY, 600)
    assert refused.returncode == 1 and "MemoryError" in refused.stderr
    assert enclosure.kills() is None and enclosure.peak_bytes() is None


def test_an_rlimit_can_be_raised_from_outside() -> None:
    enclosure = Rlimit(1 * MIB)
    command = [sys.executable, "-S", "-c", PATIENT.replace("y =", "z = bytearray(300 * 2**20)\ny =")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=enclosure.prepare) as child:
        assert child.stdin is not None and child.stdout is not None
        enclosure.attach(child.pid)
        assert child.stdout.readline() == "here\n"
        enclosure.set_limit(800 * MIB)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "more\n"


def test_who_may_not_make_a_cgroup_gets_an_rlimit(tmp_path: Path) -> None:
    assert enclose(100 * MIB, "x", root=tmp_path).kind == "rlimit"


def test_a_v2_group_is_made_with_its_limit_and_without_swap(tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    folder.mkdir()
    for name in ("memory.max", "memory.swap.max", "cgroup.procs"):
        (folder / name).write_text("")
    made = V2(folder, 123 * MIB)
    assert (folder / "memory.max").read_text() == str(123 * MIB) and (folder / "memory.swap.max").read_text() == "0"
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    (folder / "memory.peak").write_text("77\n")
    assert made.kills() == 2 and made.peak_bytes() == 77
    made.set_limit(100 * MIB)
    assert (folder / "memory.max").read_text() == str(100 * MIB)
    made.close()


def test_the_kind_on_this_machine_is_that_of_its_memory_controller() -> None:
    group = memory_cgroup()
    made = enclose(200 * MIB, f"fedkrso-kind-{os.getpid()}")
    made.close()
    if made.kind != "rlimit":
        assert group is not None and isinstance(made, V1 if group.version == 1 else V2)
