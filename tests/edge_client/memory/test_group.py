# SPDX-License-Identifier: Apache-2.0
"""Memory groups with the real kernel: who allocates beyond the limit is killed or refused, and nobody else."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.memory import group as memory_groups
from edge_client.memory.cgroups import MemoryCgroup, memory_cgroup
from edge_client.memory.group import V1, V2, MemoryGroup, Rlimit, Unconfined, confine

MIB = 2**20
GREEDY = "import sys\nx = bytearray(int(sys.argv[1]) * 2**20)\nprint(len(x))"
READER = "import mmap,sys\nf=open(sys.argv[1],'rb')\nm=mmap.mmap(f.fileno(),0,prot=1)\nprint(sum(m[i] for i in range(0,len(m),4096)))"
PATIENT = "import sys\nx = bytearray(100 * 2**20)\nprint('here', flush=True)\nsys.stdin.readline()\ny = bytearray(100 * 2**20)\nprint('more')"


def run(memory_group: MemoryGroup, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=memory_group.prepare, timeout=300)


@pytest.fixture
def cgroup() -> Iterator[MemoryGroup]:
    made = confine(150 * MIB, f"fedkrso-test-{os.getpid()}")
    if made.kind == "rlimit":
        pytest.skip("no memory cgroup can be made here (root, or a delegated one)")
    yield made
    made.close()
    made.close()


def test_the_kernel_ends_who_takes_too_much(cgroup: MemoryGroup) -> None:
    assert run(cgroup, GREEDY, 60).returncode == 0 and cgroup.kills() == 0
    assert run(cgroup, GREEDY, 400).returncode == -signal.SIGKILL
    assert cgroup.kills() == 1
    peak = cgroup.peak_bytes()
    assert peak is None or 60 * MIB < peak <= 150 * MIB


def test_a_mapped_file_larger_than_the_limit_can_be_read(cgroup: MemoryGroup, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(MIB))
    assert run(cgroup, READER, large).returncode == 0
    assert cgroup.kills() == 0
    large.unlink()


def test_what_a_dead_agent_s_worker_was_killed_for_is_not_counted_again(cgroup: MemoryGroup) -> None:
    assert run(cgroup, GREEDY, 400).returncode == -signal.SIGKILL and cgroup.kills() == 1
    command = [sys.executable, "-S", "-c", "print('here', flush=True)\ninput()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=cgroup.prepare
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "here\n"
        again = confine(150 * MIB, f"fedkrso-test-{os.getpid()}")
        assert again.kind == cgroup.kind and again.kills() == 0
        assert run(again, GREEDY, 400).returncode == -signal.SIGKILL and again.kills() == 1
        child.stdin.write("\n")
    again.close()


def test_groups_of_agents_that_were_killed_are_swept_and_those_of_living_ones_are_not(cgroup: MemoryGroup) -> None:
    assert isinstance(cgroup, V1 | V2)
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as gone:
        gone.wait()
    left, living = (cgroup.folder.parent / f"fedkrso-left-{pid}" for pid in (gone.pid, os.getppid()))
    left.mkdir()
    living.mkdir()
    try:
        confine(150 * MIB, f"fedkrso-other-{os.getpid()}").close()
        assert not left.exists() and living.exists()
    finally:
        living.rmdir()


def test_a_closed_group_is_gone(cgroup: MemoryGroup) -> None:
    assert isinstance(cgroup, V1 | V2) and cgroup.folder.is_dir()
    assert run(cgroup, GREEDY, 1).returncode == 0
    cgroup.close()
    assert not cgroup.folder.exists() and cgroup.kills() is None and cgroup.current_bytes() is None


def test_a_limit_can_be_lowered_and_raised_while_the_worker_runs(cgroup: MemoryGroup) -> None:
    command = [sys.executable, "-S", "-c", PATIENT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=cgroup.prepare
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "here\n"
        used = cgroup.current_bytes()
        assert used is not None and 100 * MIB <= used <= 150 * MIB
        cgroup.set_limit(50 * MIB)
        assert child.poll() is None and cgroup.limit_bytes == 150 * MIB, (
            "a limit below its use is refused, not a death sentence"
        )
        cgroup.set_limit(140 * MIB)
        assert cgroup.limit_bytes == 140 * MIB
        cgroup.set_limit(300 * MIB)
        assert cgroup.limit_bytes == 300 * MIB
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "more\n"


def test_an_rlimit_refuses_the_allocation() -> None:
    memory_group = Rlimit(100 * MIB, threads=2)
    assert run(memory_group, GREEDY, 60).returncode == 0
    refused = run(memory_group, GREEDY, 600)
    assert refused.returncode == 1 and "MemoryError" in refused.stderr
    assert (memory_group.kills(), memory_group.peak_bytes(), memory_group.current_bytes()) == (None, None, None)


def test_an_rlimit_allows_for_the_stacks_of_its_threads() -> None:
    few, many = Rlimit(100 * MIB, threads=2), Rlimit(100 * MIB, threads=16)
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = stack if 0 < stack < 8 * MIB else 8 * MIB
    assert many.allowance_bytes - few.allowance_bytes == 14 * 2 * stack and few.allowance_bytes > 140 * MIB


def test_an_rlimit_keeps_below_a_hard_limit_and_the_worker_still_starts() -> None:
    memory_group = Rlimit(2**40)

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (300 * MIB, 300 * MIB))
        memory_group.prepare()

    command = [sys.executable, "-S", "-c", PATIENT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=prepare
    ) as child:
        memory_group.attach(child.pid)
        assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "here\n"
        assert resource.prlimit(child.pid, resource.RLIMIT_DATA) == (300 * MIB, 300 * MIB)
        memory_group.set_limit(2**41)
        assert resource.prlimit(child.pid, resource.RLIMIT_DATA) == (300 * MIB, 300 * MIB)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "more\n"
    memory_group.set_limit(100 * MIB)


def test_an_rlimit_can_be_raised_from_outside() -> None:
    memory_group = Rlimit(1 * MIB, threads=2)
    command = [sys.executable, "-S", "-c", PATIENT.replace("y =", "z = bytearray(300 * 2**20)\ny =")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=memory_group.prepare
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        memory_group.attach(child.pid)
        assert child.stdout.readline() == "here\n"
        memory_group.set_limit(800 * MIB)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "more\n"


def test_who_may_not_make_a_cgroup_gets_an_rlimit(tmp_path: Path) -> None:
    assert confine(100 * MIB, "x", root=tmp_path).kind == "rlimit"


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
    (folder / "memory.current").write_text(str(90 * MIB))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {20 * MIB}\n")
    assert made.current_bytes() == 70 * MIB
    made.set_limit(60 * MIB)
    assert (folder / "memory.max").read_text() == str(100 * MIB) and made.limit_bytes == 100 * MIB, (
        "version 2 would kill at once"
    )
    made.set_limit(80 * MIB)
    assert (folder / "memory.max").read_text() == str(80 * MIB)
    made.close()
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> MemoryCgroup:
    """A made-up group of version 2 with this process alone in it."""
    folder = tmp_path / "top/slice/service"
    (folder / "agent").mkdir(parents=True)
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (folder.parent / "cgroup.procs").write_text("")
    return MemoryCgroup(2, folder, tmp_path / "top")


def test_an_agent_alone_in_its_group_moves_to_a_leaf(own: MemoryCgroup) -> None:
    assert memory_groups._emptied(own) == own.folder
    assert (own.folder / "agent/cgroup.procs").read_text() == str(os.getpid())
    assert (own.folder / "cgroup.subtree_control").read_text() == "+memory"
    with pytest.raises(PermissionError):
        memory_groups._emptied(MemoryCgroup(2, own.folder / "agent", own.top))


def test_an_agent_with_company_stays_where_it_is(own: MemoryCgroup) -> None:
    (own.folder / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    with pytest.raises(PermissionError):
        memory_groups._emptied(own)
    assert not (own.folder / "agent/cgroup.procs").exists()


def test_a_sensor_s_program_comes_along(own: MemoryCgroup) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        (own.folder / "cgroup.procs").write_text(f"{child.pid}\n{os.getpid()}\n")
        assert memory_groups._emptied(own) == own.folder
        # A made-up file holds what was written last, the kernel's holds both.
        assert (own.folder / "agent/cgroup.procs").read_text() == str(child.pid)
        child.communicate(b"\n")


def kernel(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a made-up tree behave: a process is in one group, and one with processes gives its children no
    controllers."""
    write = Path.write_text

    def written(path: Path, text: str, *arguments: object, **options: object) -> int:
        if path.is_relative_to(tree):
            if path.name == "cgroup.subtree_control" and (path.parent / "cgroup.procs").read_text().split():
                raise OSError(errno.EBUSY, "Device or resource busy")
            if path.name == "cgroup.procs":
                for other in tree.rglob("cgroup.procs"):
                    write(other, "".join(f"{pid}\n" for pid in other.read_text().split() if pid != text))
                text = (path.read_text() if path.exists() else "") + f"{text}\n"
        return write(path, text, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", written)


@pytest.mark.parametrize("group", ["", "/agent"], ids=["systemd 249: in the unit's group", "systemd 254: in its leaf"])
def test_a_delegated_unit_has_agent_and_worker_side_by_side_under_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    tree = tmp_path / "sys/fs/cgroup"
    unit = tree / "system.slice/fedkrso-client.service"
    (unit / "worker").mkdir(parents=True)
    (unit / "agent").mkdir()
    (tmp_path / "proc/self").mkdir(parents=True)
    where = tmp_path / "proc/self/cgroup"
    where.write_text(f"0::/system.slice/fedkrso-client.service{group}\n")
    (tmp_path / "proc/self/mountinfo").write_text("35 24 0:30 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n")
    for place in (unit, unit / "agent", unit / "worker"):
        (place / "cgroup.controllers").write_text("memory\n")
        (place / "cgroup.procs").write_text("")
    (unit / "memory.max").write_text(str(900 * MIB))
    kernel(tree, monkeypatch)
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as sensor:
        for pid in (sensor.pid, os.getpid()):
            (unit / group.lstrip("/") / "cgroup.procs").write_text(str(pid))
        # The second worker is started from wherever the first one brought us.
        for _ in range(2):
            made = confine(300 * MIB, "worker", root=tmp_path)
            assert isinstance(made, V2) and made.folder == unit / "worker"
            assert (unit / "worker/memory.max").read_text() == str(300 * MIB) and (
                unit / "cgroup.subtree_control"
            ).read_text() == "+memory"
            assert (unit / "cgroup.procs").read_text() == ""
            assert sorted((unit / "agent/cgroup.procs").read_text().split()) == sorted(
                [str(sensor.pid), str(os.getpid())]
            )
            where.write_text("0::/system.slice/fedkrso-client.service/agent\n")
            made.close()
        sensor.communicate(b"\n")


def test_an_agent_moves_back_when_the_controller_is_refused(own: MemoryCgroup) -> None:
    (own.folder / "cgroup.subtree_control").mkdir()
    with pytest.raises(OSError, match="directory"):
        memory_groups._emptied(own)
    assert (own.folder / "cgroup.procs").read_text() == str(os.getpid())


def test_a_worker_beside_its_agent_leaves_no_limit(own: MemoryCgroup) -> None:
    assert memory_groups._beside(own) == own.folder.parent
    with pytest.raises(PermissionError):
        memory_groups._beside(MemoryCgroup(2, own.top, own.top))
    (own.folder / "memory.max").write_text("max\n")
    assert memory_groups._beside(own) == own.folder.parent
    (own.folder / "memory.high").write_text("1000000\n")
    with pytest.raises(PermissionError):
        memory_groups._beside(own)


def test_enclose_finds_a_v2_group_of_its_own(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/service"
    worker = group / "worker"
    worker.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/service\n")
    (tmp_path / "proc/self/mountinfo").write_text("35 24 0:30 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n")
    (group / "cgroup.controllers").write_text("memory\n")
    for name in ("memory.max", "cgroup.procs"):
        (worker / name).write_text("")
    made = confine(300 * MIB, "worker", root=tmp_path)
    assert made.kind == "cgroup v2" and (worker / "memory.max").read_text() == str(300 * MIB)
    made.close()


def test_no_memory_group_starts_the_worker_and_counts_nothing() -> None:
    memory_group = Unconfined(1 * MIB)
    assert run(memory_group, GREEDY, 60).returncode == 0
    memory_group.attach(1)
    memory_group.set_limit(2 * MIB)
    assert memory_group.kind == "none" and memory_group.limit_bytes == 2 * MIB
    assert (memory_group.kills(), memory_group.peak_bytes(), memory_group.current_bytes()) == (None, None, None)
    memory_group.close()
    memory_group.close()


def test_the_kind_on_this_machine_is_that_of_its_memory_controller() -> None:
    group = memory_cgroup()
    made = confine(200 * MIB, f"fedkrso-kind-{os.getpid()}")
    made.close()
    if made.kind != "rlimit":
        assert group is not None and isinstance(made, V1 if group.version == 1 else V2)
