# SPDX-License-Identifier: Apache-2.0
"""A real systemd as the first process of name spaces of its own, on a throw-away layer over this machine's files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

__all__ = ["BootedDevice", "needs_booting"]

_SYSTEMD = Path("/lib/systemd/systemd")
# Nothing of this machine's own services: the journal, and a target to stand on.
_TARGET = """[Unit]
Description=A device for a test
Wants=systemd-journald.service systemd-journald.socket
"""
_BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs {layer}
mkdir {layer}/upper {layer}/work {layer}/root
mount -t overlay overlay -o lowerdir=/,upperdir={layer}/upper,workdir={layer}/work {layer}/root
cd {layer}/root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p ./{shared}
mount --bind {shared} ./{shared}
cp {shared}/device.target etc/systemd/system/device.target
mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin {systemd} --system --unit=device.target --show-status=no --log-target=null
"""


class BootedDevice:
    """A device.

    Args:
        shared: A folder that is the same inside and outside; everything else inside is forgotten.
    """

    def __init__(self, shared: Path) -> None:
        self._layer, self._group = shared / "layer", _cgroup2() / f"fedkrso-nest-{os.getpid()}"
        self._layer.mkdir()
        (shared / "device.target").write_text(_TARGET)
        script = shared / "boot.sh"
        script.write_text(_BOOT.format(layer=self._layer, shared=shared, systemd=_SYSTEMD))
        self._group.mkdir()
        # Where version 2 has the memory controller, the device has it too.
        with contextlib.suppress(OSError):
            (self._group.parent / "cgroup.subtree_control").write_text("+memory")
        command = [
            "unshare",
            "--fork",
            "--kill-child",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--cgroup",
            "sh",
            str(script),
        ]
        with (shared / "boot.log").open("wb") as log:
            self._outer = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=self._enter)
        try:
            self._wait_until_up()
        except BaseException:
            self.close()
            raise

    def run(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the device, as root."""
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
        spaces = ["nsenter", "--target", str(self._first), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"]
        done = subprocess.run(
            [*spaces, *environment, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd="/"
        )
        assert done.returncode == 0 or not check, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def fedkrso(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Call the program as it is installed here."""
        return self.run(Path(sys.prefix) / "bin/fedkrso", *arguments, check=check)

    def shown(self, name: str) -> str:
        """What the device's systemd says of the service."""
        return self.run("systemctl", "show", "fedkrso-client", f"--property={name}", "--value").stdout.strip()

    def wait(self, name: str, wanted: str, seconds: float = 120.0) -> None:
        """Until a property of the service has a value."""
        deadline = time.monotonic() + seconds
        while (found := self.shown(name)) != wanted:
            assert time.monotonic() < deadline, f"{name} is {found}, not {wanted}"
            time.sleep(0.1)

    def close(self) -> None:
        """End everything in it."""
        self._outer.kill()
        self._outer.wait()
        # The kernel takes a moment to let go of the last processes.
        for _ in range(50):
            for folder in sorted(self._group.rglob("*/"), key=lambda path: -len(path.parts)):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                self._group.rmdir()
            if not self._group.exists():
                return
            time.sleep(0.1)

    @property
    def _first(self) -> int:
        return psutil.Process(self._outer.pid).children()[0].pid

    def _enter(self) -> None:
        (self._group / "cgroup.procs").write_text("0")

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(IndexError, psutil.Error):
                done = self.run("systemctl", "is-active", "device.target", check=False)
                if done.stdout.strip() == "active":
                    return
            time.sleep(0.1)
        pytest.skip(
            f"no systemd could be started in name spaces: {(self._layer.parent / 'boot.log').read_text()[-300:]}"
        )


def _cgroup2() -> Path:
    """Where version 2 is mounted."""
    found = [part.mountpoint for part in psutil.disk_partitions(all=True) if part.fstype == "cgroup2"]
    return Path(found[0]) if found else Path("/nowhere")


needs_booting = pytest.mark.skipif(
    os.geteuid() != 0 or not _SYSTEMD.exists() or shutil.which("nsenter") is None or not _cgroup2().is_dir(),
    reason="needs root, systemd, nsenter and cgroups of version 2",
)
