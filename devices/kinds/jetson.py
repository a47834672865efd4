# SPDX-License-Identifier: Apache-2.0
"""NVIDIA Jetson: Nano, TX2, Xavier, Orin, Thor. Processor and GPU share one memory, which is counted once.

Orin's driver (nvgpu) shows the GPU's load as a file and nothing to `nvidia-smi`; Thor's shows it to `nvidia-smi`. What
neither tells is taken from `tegrastats`, which is started only then."""

from __future__ import annotations

from dataclasses import replace

from devices.base import Accelerator, Device, Facts, Host
from devices.files import read_text
from devices.identity import compatible, device_tree_model
from devices.kinds.linux import LinuxDevice, facts_of
from devices.l4t import Chip, catalogue_name, chip_of, jetpack, l4t_version
from devices.sensors.load import TegraGpuLoad
from devices.sensors.nvidia_smi import NvidiaGpu
from devices.sensors.power_mode import NvpModel
from devices.sensors.rails import Rails, board_watts
from devices.sensors.tegrastats import Tegrastats
from devices.sensors.throttling import over_current_counters

__all__ = ["Jetson", "detect"]


class Jetson(LinuxDevice):
    """A Jetson.

    Args:
        facts: What it is.
        host: Its files and programs.
        gpu: What `nvidia-smi` shows of it, on boards where it shows anything.
    """

    def __init__(self, facts: Facts, host: Host, gpu: NvidiaGpu | None = None) -> None:
        super().__init__(facts, host, gpu)
        self._rails, self._gpu_load, self._mode = Rails(host.root), TegraGpuLoad(host.root), NvpModel(host.root)
        self._tegrastats = Tegrastats(host.tegrastats, host.clock) if host.tegrastats else None

    def close(self) -> None:
        """End `tegrastats`."""
        if self._tegrastats is not None:
            self._tegrastats.close()
            self._tegrastats = None

    def scan(self) -> None:
        """With rails, GPU and power modes."""
        super().scan()
        self._rails.scan()
        self._gpu_load.scan()
        self._mode.scan()

    def values(self) -> dict[str, object]:
        """With power, its mode, and the GPU's load; the accelerator has no memory of its own."""
        values = super().values()
        values["accelerator_total_bytes"] = values["accelerator_available_bytes"] = None
        values["power_mode"] = self._mode.name()
        values["power_watts"] = board_watts(self._rails.watts())
        load = self._gpu_load.percent()
        if load is not None:
            values["accelerator_percent"] = load
        if self._tegrastats is not None and (values["power_watts"] is None or values["accelerator_percent"] is None):
            self._ask_tegrastats(values, self._tegrastats)
        return values

    def counters(self) -> list[tuple[str, str]]:
        """The board's counters of over-current and under-voltage."""
        return over_current_counters(self._host.root)

    def _ask_tegrastats(self, values: dict[str, object], tegrastats: Tegrastats) -> None:
        line = tegrastats.latest()
        if line is None:
            return
        watts = board_watts(line.rails_watts)
        told = {"power_watts": watts, "accelerator_percent": line.gpu_percent}
        missing = [name for name in told if values[name] is None]
        if all(told[name] is None for name in missing):
            self.close()  # no more than the files say: on Thor the line has the GPU's clocks, not its load
            return
        for name in missing:
            values[name] = told[name]
        values["temperatures_celsius"] = values["temperatures_celsius"] or line.temperatures_celsius


def detect(host: Host) -> Device | None:
    """The Jetson, if it is one: by device tree, release file, kernel, in this order."""
    tree = compatible(host.root)
    # In a container the device tree may be hidden.
    named = (
        any(name.startswith("nvidia,tegra") for name in tree)
        or read_text(host.root / "etc/nv_tegra_release", 64) is not None
    )
    if not named and not (read_text(host.root / "proc/sys/kernel/osrelease", 128) or "").endswith("tegra"):
        return None
    model, chip = device_tree_model(host.root), chip_of(tree)
    l4t = l4t_version(host.root, host.run)
    gpu = _smi_gpu(host, chip)
    facts = facts_of("jetson", model or "NVIDIA Jetson", host)
    return Jetson(
        replace(
            facts,
            catalogue=catalogue_name(chip, tree, model, facts.memory_total_bytes),
            system=_system(l4t, facts.system),
            accelerator=_accelerator(chip, gpu),
        ),
        host,
        gpu,
    )


def _system(l4t: str | None, distribution: str | None) -> str | None:
    if l4t is None:
        return distribution
    release = jetpack(l4t)
    return f"L4T {l4t} (JetPack {release})" if release is not None else f"L4T {l4t}"


def _smi_gpu(host: Host, chip: Chip | None) -> NvidiaGpu | None:
    """Where `nvidia-smi` says anything: not with nvgpu, where every cell is `[N/A]`."""
    if chip is not None and chip.name != "tegra264":
        return None
    found = NvidiaGpu.found(host.root, host.run, host.clock, unified=True)
    reading = found.read() if found is not None else None
    return found if reading is not None and (reading.percent is not None or reading.celsius is not None) else None


def _accelerator(chip: Chip | None, gpu: NvidiaGpu | None) -> Accelerator | None:
    if chip is not None:
        return Accelerator(f"{chip.gpu} GPU ({chip.name})", unified=True, compute_capability=chip.compute_capability)
    return gpu.accelerator if gpu is not None else None
