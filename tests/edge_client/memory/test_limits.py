# SPDX-License-Identifier: Apache-2.0
"""Limits and budgets on made-up trees of /proc and /sys: cgroup v2, JetPack 5's hybrid v1, a container, and a kernel
with neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_client.memory.cgroups import memory_cgroup
from edge_client.memory.limits import Limit, budget_bytes, droppable_bytes, kernel_limits, room
from fedcore.errors import BudgetError, ConfigError, FedkrsoError

GIB = 2**30
MEMINFO = "MemTotal:        8388608 kB\nMemFree:  100 kB\nMemAvailable:    4194304 kB\n"
V2_MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "40 30 0:35 {root} /sys/fs/cgroup/memory rw,nosuid shared:15 - cgroup cgroup rw,memory\n"
UNIFIED = "31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n"


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    entries = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, "proc/meminfo": MEMINFO, **files}
    for name, text in entries.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    group = "sys/fs/cgroup/system.slice/fedkrso.service"
    return tree(
        tmp_path,
        "0::/system.slice/fedkrso.service\n",
        V2_MOUNT,
        {
            f"{group}/cgroup.controllers": "cpu memory pids\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.high": f"{3 * GIB}\n",
            f"{group}/memory.current": f"{GIB}\n",
            f"{group}/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/system.slice/memory.current": f"{3 * GIB // 2}\n",
        },
    )


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    group = "sys/fs/cgroup/memory/user.slice/agent"
    return tree(
        tmp_path,
        "12:cpu,cpuacct:/\n8:memory:/user.slice/agent\n1:name=systemd:/init.scope\n0::/init.scope\n",
        UNIFIED + V1_MOUNT.format(root="/"),
        {
            f"{group}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{group}/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/user.slice/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/user.slice/memory.usage_in_bytes": f"{GIB * 3 // 4}\n",
            "sys/fs/cgroup/memory/user.slice/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n",
            "sys/fs/cgroup/unified/cgroup.controllers": "hugetlb\n",
        },
    )


def test_every_ancestor_of_a_v2_group_counts(v2: Path) -> None:
    group = memory_cgroup(root=v2)
    assert group is not None and group.version == 2 and len(group.ancestors) == 3
    assert [(Path(limit.source).name, limit.size_bytes) for limit in kernel_limits(v2)] == [
        ("memory.max", 2 * GIB),
        ("memory.high", 3 * GIB),
        ("MemTotal", 8 * GIB),
    ]
    least = room(v2)
    assert least is not None and least.size_bytes == GIB // 2 and "system.slice/memory.max" in least.source


def test_v1_s_memory_controller_is_found_beside_an_empty_v2(v1: Path) -> None:
    group = memory_cgroup(root=v1)
    assert group is not None and group.version == 1 and group.folder == v1 / "sys/fs/cgroup/memory/user.slice/agent"
    assert kernel_limits(v1)[0].size_bytes == GIB, "the huge number means none; the parent's limit counts"
    least = room(v1)
    assert least is not None and least.size_bytes == GIB // 2, "page cache that can be dropped is room"


def test_in_a_container_the_mount_s_root_is_the_group(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "4:memory:/docker/abc\n0::/docker/abc\n",
        V1_MOUNT.format(root="/docker/abc"),
        {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n"},
    )
    group = memory_cgroup(root=root)
    assert group is not None and group.folder == root / "sys/fs/cgroup/memory"
    assert kernel_limits(root)[0].size_bytes == GIB


def test_a_group_whose_name_begins_like_the_mount_s_root_is_another(tmp_path: Path) -> None:
    mounts = V1_MOUNT.format(root="/docker/abc").replace("/cgroup/memory", "/cgroup/the\\040memory")
    root = tree(
        tmp_path,
        "4:memory:/docker/abcd\n",
        mounts,
        {"sys/fs/cgroup/the memory/docker/abcd/memory.limit_in_bytes": f"{GIB}\n"},
    )
    group = memory_cgroup(root=root)
    assert group is not None and group.folder == root / "sys/fs/cgroup/the memory/docker/abcd"


def test_without_cgroups_there_is_only_the_device(tmp_path: Path) -> None:
    root = tree(tmp_path, "", "", {})
    assert memory_cgroup(root=root) is None
    assert [limit.source for limit in kernel_limits(root)] == ["MemTotal"]
    assert room(root) == Limit("MemAvailable", 4 * GIB)


def test_unknown_is_none(tmp_path: Path) -> None:
    assert room(tmp_path) is None and kernel_limits(tmp_path) == () and droppable_bytes(tmp_path) == 0
    with pytest.raises(BudgetError, match="does not tell"):
        budget_bytes("auto", root=tmp_path)


def test_an_rlimit_counts_and_a_huge_number_in_v1_does_not(v1: Path) -> None:
    unlimited = "Max address space         unlimited            unlimited            bytes     \n"
    (v1 / "proc/self/limits").write_text(
        f"Limit  Soft Limit  Hard Limit  Units\nMax data size             {GIB // 2}            unlimited            bytes\n{unlimited}"
    )
    limits = kernel_limits(v1)
    assert [limit.size_bytes for limit in limits] == [GIB // 2, GIB, 8 * GIB]
    assert limits[0].source.startswith("RLIMIT_DATA")
    with pytest.raises(BudgetError, match="RLIMIT_DATA"):
        budget_bytes("600 MiB", root=v1)


def test_another_process_has_limits_of_its_own(v2: Path) -> None:
    tree(
        v2,
        "0::/system.slice/fedkrso.service\n",
        V2_MOUNT,
        {"proc/7/cgroup": "0::/system.slice\n", "proc/7/mountinfo": V2_MOUNT},
    )
    tree(
        v2,
        "0::/system.slice/fedkrso.service\n",
        V2_MOUNT,
        {"sys/fs/cgroup/system.slice/cgroup.controllers": "memory\n"},
    )
    assert [limit.size_bytes for limit in kernel_limits(v2, 7)] == [2 * GIB, 8 * GIB]


def test_memory_high_is_room_s_limit_too(v2: Path) -> None:
    (v2 / "sys/fs/cgroup/system.slice/fedkrso.service/memory.high").write_text(f"{3 * GIB // 4}\n")
    least = room(v2)
    assert least is not None and least.size_bytes == GIB // 4 and least.source.endswith("fedkrso.service/memory.high")


def test_a_limit_below_every_budget_is_what_has_to_change(v2: Path) -> None:
    (v2 / "sys/fs/cgroup/system.slice/memory.max").write_text(f"{200 * 2**20}\n")
    for text in ("auto", "60%", "256 MiB"):
        with pytest.raises(BudgetError, match="system.slice/memory.max allows 200 MiB") as caught:
            budget_bytes(text, root=v2)
        assert "raise" in caught.value.remedy and "256 MiB" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5 GiB", 3 * GIB // 2), ("60%", int(2 * GIB * 0.6)), ("auto", int(GIB // 2 * 0.6)), ("400MB", 400_000_000)],
)
def test_budgets(v2: Path, text: str, expected: int) -> None:
    assert budget_bytes(text, root=v2) == expected


@pytest.mark.parametrize(
    ("text", "error", "says", "remedy"),
    [
        ("100 MiB", BudgetError, "less than the 256 MiB", "at least 256 MiB"),
        ("5%", BudgetError, "5% of 2,048 MiB", "at least 256 MiB"),
        ("3 GiB", BudgetError, "more than the 2,048 MiB that .*system.slice/memory.max allows", "at most 2048 MiB"),
        ("120%", ConfigError, "outside 0 to 100", "60%"),
        ("2 gigs", ConfigError, "not a size", "2 GiB"),
        ("lots", ConfigError, "not a size", "2.5 GiB"),
        ("60 percent", ConfigError, "not a budget", "60%"),
        ("160 per cent", ConfigError, "not a budget", "60%"),
        ("automatic", ConfigError, "not a budget", "auto"),
    ],
)
def test_wrong_budgets_are_refused_with_the_nearest_valid_choice(
    v2: Path, text: str, error: type[FedkrsoError], says: str, remedy: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        budget_bytes(text, root=v2)
    assert remedy in caught.value.remedy and caught.value.place == "memory_budget"
