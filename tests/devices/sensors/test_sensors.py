# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - lines of tegrastats are long
"""Each source by itself: forms of other releases, and traps that recordings of whole devices do not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.base import Host
from devices.checking import checked
from devices.files import folder_names, read_bytes, read_number, read_text
from devices.identity import dmi_name
from devices.l4t import catalogue_name, chip_of
from devices.sensors.load import ProcessorLoad
from devices.sensors.nvidia_smi import parse_gpus
from devices.sensors.supply import PowerSupply, Supply, has_battery
from devices.sensors.tegrastats import parse_tegrastats
from devices.sensors.temperature import Temperatures
from devices.sensors.throttling import CoolingDevices, Growth, TripPoints, Verdict

GIB = 2**30


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# Lines from rbonghi/jetson_stats tests/tegrastats (one with values set to be told apart), a JetPack 4.1 Xavier NX of a
# public exporter's tests, lesomnus/tegra-exporter's tests (R36.4.4), and jetson_stats pull request 894 (JetPack 7.2),
# shortened there.
@pytest.mark.parametrize(
    ("line", "total_mib", "gpu", "sensors", "rails"),
    [
        (
            "RAM 4722/7844MB (lfb 1x512kB) CPU [12%@2035,34%@2034,56%@2034,78%@2035,90%@2035,99%@2035] SWAP 149/1024MB (cached 7MB) EMC_FREQ 2%@1866 GR3D_FREQ 59%@1300 APE 150 MTS fg 3% bg 9% BCPU@-45C MCPU@-45C GPU@-51C PLL@45C AO@47.5C Tboard@37C Tdiode@46.75C PMIC@100C thermal@46.4C VDD_IN 14025/14416 VDD_CPU 2209/2538 VDD_GPU 6854/6903 VDD_SOC 1371/1370 VDD_WIFI 19/19 NVENC 716 NVDEC 716 VDD_DDR 2702/2702",
            7844,
            59,
            {"bcpu": -45, "mcpu": -45, "gpu": -51, "pll": 45, "ao": 47.5, "tboard": 37, "tdiode": 46.75},
            {
                "VDD_IN": 14.025,
                "VDD_CPU": 2.209,
                "VDD_GPU": 6.854,
                "VDD_SOC": 1.371,
                "VDD_WIFI": 0.019,
                "VDD_DDR": 2.702,
            },
        ),
        (
            "01-03-2023 16:10:22 RAM 2257/30536MB (lfb 5392x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@729,0%@729] EMC_FREQ 0% GR3D_FREQ 0% CV0@-256C CPU@41.375C Tboard@29C SOC2@39C Tdiode@30.75C GPU@-256C tj@41.468C",
            30536,
            0,
            {"cpu": 41.375, "tboard": 29, "soc2": 39, "tdiode": 30.75, "tj": 41.468},
            {},
        ),
        (
            "RAM 5246/7771MB (lfb 7x4MB) SWAP 983/20269MB (cached 280MB) CPU [47%@1420,23%@1420,32%@1420,22%@1420,31%@1420,96%@1420] EMC_FREQ 2%@1600 GR3D_FREQ 0%@1109 APE 150 MTS fg 1% bg 9% AO@29C GPU@31.5C PMIC@100C AUX@30C CPU@33.5C thermal@31.35C VDD_IN 6140/5510 VDD_CPU_GPU_CV 2706/2119 VDD_SOC 1074/1051",
            7771,
            0,
            {"ao": 29, "gpu": 31.5, "aux": 30, "cpu": 33.5},
            {"VDD_IN": 6.14, "VDD_CPU_GPU_CV": 2.706, "VDD_SOC": 1.074},
        ),
        (
            "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,5%@2112] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] NVENC 79%@166 NVDEC off VIC 36%@115 PVA0_FREQ off APE 174 cpu@52.562C soc2@48.437C tj@52.562C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW",
            62841,
            0,
            {"cpu": 52.562, "soc2": 48.437, "tj": 52.562},
            {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.707},
        ),
        (
            "RAM 20642/62817MB (lfb 1x2MB) EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] cpu@52.968C/52.968C VDD_GPU_SOC 5139mW/5139mW/5139mW",
            62817,
            12,
            {"cpu": 52.968},
            {"VDD_GPU_SOC": 5.139},
        ),
        ("", None, None, {}, {}),
        ("RAM 9/0MB CPU [] GR3D_FREQ 4000% cpu@C VDD_IN /mW", None, None, {}, {}),
    ],
    ids=["jetpack-4-tx2", "jetpack-5-off", "jetpack-4.1-nx", "jetpack-6-agx", "jetpack-7.2-agx", "empty", "nonsense"],
)
def test_tegrastats_of_other_releases(
    line: str, total_mib: int | None, gpu: float | None, sensors: dict[str, float], rails: dict[str, float]
) -> None:
    found = parse_tegrastats(line)
    assert found.memory_total_bytes == (None if total_mib is None else total_mib * 2**20)
    assert (found.gpu_percent, found.temperatures_celsius, found.rails_watts) == (gpu, sensors, pytest.approx(rails))


def test_cores_that_are_off_count_not() -> None:
    assert parse_tegrastats("CPU [12%@2035,off,off,34%@2034]").processor_percent == 23.0
    assert parse_tegrastats("CPU [off,off]").processor_percent is None


@pytest.mark.parametrize(
    ("tree", "model", "gib", "name"),
    [
        (["nvidia,p3768-0000+p3767-0004", "nvidia,tegra234"], "x", 3.7, "jetson-orin-nano-4gb"),
        (["nvidia,p3768-0000+p3767-0001", "nvidia,tegra234"], "any carrier", 7.3, "jetson-orin-nx-8gb"),
        (["nvidia,p3768-0000+p3767-0000-super", "nvidia,tegra234"], "any carrier", 15.2, "jetson-orin-nx-16gb"),
        (
            ["nvidia,p3509-0000+p3767-0003", "nvidia,tegra234"],
            "NVIDIA Orin Nano Developer Kit",
            7.4,
            "jetson-orin-nano-8gb",
        ),
        (["nvidia,p3737-0000+p3701-0000", "nvidia,tegra234"], "Jetson AGX Orin", 29.8, "jetson-agx-orin-32gb"),
        (["acme,board", "nvidia,tegra234"], "ACME box with Jetson Orin NX", 15.2, "jetson-orin-nx-16gb"),
        (["nvidia,p3834-0009", "nvidia,tegra264"], "T4000", 61, "jetson-thor-64gb"),
        (["nvidia,p3668-0003", "nvidia,tegra194"], "x", 14.5, "jetson-xavier-nx-16gb"),
        (["acme,board", "nvidia,tegra234"], "ACME box", 15.2, None),
        (["nvidia,p3767-0000", "nvidia,tegra999"], "the next one", 15.2, None),
        (["nvidia,p3767-0005", "nvidia,tegra234"], "more than there can be", 31, None),
    ],
)
def test_modules_have_their_catalogue_names(tree: list[str], model: str, gib: float, name: str | None) -> None:
    assert catalogue_name(chip_of(tree), tree, model, int(gib * GIB)) == name


def test_processor_load_is_between_two_readings(tmp_path: Path) -> None:
    path = tmp_path / "proc/stat"
    put(tmp_path, {"proc/stat": "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1 1\n"})
    load = ProcessorLoad(tmp_path)
    assert load.percent() is None
    path.write_text("cpu  130 0 110 750 110 0 0 0 80 0\n")
    assert load.percent() == 40.0
    assert load.percent() == 40.0  # within the same tick
    path.write_text("cpu  130 0 110 760 105 0 0 0 80 0\n")
    assert load.percent() == 0.0  # waiting went back, as it may
    path.write_bytes(b"cpu  \xff\xfe")
    assert load.percent() is None
    path.write_text("cpu  130 0 110 760 105 0 0 0 80 0\n")
    assert load.percent() is None


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, Supply(True)),
        (
            {"AC": "TYPE=Mains\nONLINE=1", "BAT0": "TYPE=Battery\nSTATUS=Discharging\nCAPACITY=50\nPOWER_NOW=5000000"},
            Supply(True, 50.0),
        ),
        ({"BAT0": "TYPE=Battery\nSTATUS=Discharging\nCAPACITY=104\nPOWER_NOW=-5000000"}, Supply(False, None, 5.0)),
        (
            {"BAT0": "TYPE=Battery\nSTATUS=Discharging\nVOLTAGE_NOW=11358000\nCURRENT_NOW=278000"},
            Supply(False, None, 11.358 * 0.278),
        ),
        ({"BAT0": "TYPE=Battery\nSTATUS=Discharging\nPOWER_NOW=x"}, Supply(False)),
        ({"BAT0": "TYPE=Battery\nSTATUS=Full\nCAPACITY=100"}, Supply(True, 100.0)),
        ({"BAT0": "TYPE=Battery\nSTATUS=Not charging\nCAPACITY=60"}, Supply(None, 60.0)),
        ({"BAT0": "TYPE=Battery\nSTATUS=Unknown\nPRESENT=0", "AC": "TYPE=Mains\nONLINE=0"}, Supply(True)),
        (
            {
                "BAT0": "TYPE=Battery\nSTATUS=Discharging",
                "ucsi-source-psy-USBC000:001": "TYPE=USB\nONLINE=0",
                "AC": "TYPE=Mains\nONLINE=0",
            },
            Supply(False),
        ),
        ({"BAT0": "TYPE=Battery\nSTATUS=Charging\nCAPACITY=5", "ucsi": "TYPE=USB_C\nONLINE=1"}, Supply(True, 5.0)),
        ({"hid-battery": "TYPE=Battery\nSCOPE=Device\nSTATUS=Discharging\nCAPACITY=5"}, Supply(True)),
    ],
)
def test_mains_and_battery(supplies: dict[str, str], expected: Supply, tmp_path: Path) -> None:
    (tmp_path / "sys/class/power_supply").mkdir(parents=True)
    for name, lines in supplies.items():
        put(
            tmp_path,
            {f"sys/class/power_supply/{name}/uevent": "".join(f"POWER_SUPPLY_{line}\n" for line in lines.split("\n"))},
        )
    found = PowerSupply(tmp_path).read()
    assert (found.on_mains, found.battery_percent) == (expected.on_mains, expected.battery_percent)
    assert found.battery_watts == pytest.approx(expected.battery_watts)


def test_no_folder_of_power_supplies_says_nothing(tmp_path: Path) -> None:
    assert PowerSupply(tmp_path).read() == Supply() and not has_battery(tmp_path)


def test_the_power_supply_is_asked_every_five_seconds(tmp_path: Path) -> None:
    times = [0.0]
    put(tmp_path, {"sys/class/power_supply/AC/uevent": "POWER_SUPPLY_TYPE=Mains\nPOWER_SUPPLY_ONLINE=1\n"})
    put(tmp_path, {"sys/class/power_supply/BAT/uevent": "POWER_SUPPLY_TYPE=Battery\nPOWER_SUPPLY_STATUS=Full\n"})
    supply = PowerSupply(tmp_path, lambda: times[0])
    assert supply.read().on_mains is True
    put(tmp_path, {"sys/class/power_supply/AC/uevent": "POWER_SUPPLY_TYPE=Mains\nPOWER_SUPPLY_ONLINE=0\n"})
    times[0] = 4.9
    assert supply.read().on_mains is True
    times[0] = 5.0
    assert supply.read().on_mains is False


def test_event_counters_mean_something_while_they_grow(tmp_path: Path) -> None:
    put(tmp_path, {"a": "5\n", "b": "0\n"})
    growth = Growth(
        [("heat", str(tmp_path / "a")), ("under-voltage", str(tmp_path / "b")), ("gone", str(tmp_path / "c"))]
    )
    assert growth.verdict() == Verdict()
    assert growth.verdict() == Verdict(False)
    put(tmp_path, {"a": "6\n", "b": "1\n"})
    assert growth.verdict() == Verdict(True, "heat, under-voltage")
    put(tmp_path, {"a": "0\n", "b": "broken"})  # a counter that starts again is no event
    assert growth.verdict() == Verdict(False)
    (tmp_path / "a").unlink()
    assert growth.verdict() == Verdict()


def test_a_fan_is_no_throttling_and_a_trip_point_is_one(tmp_path: Path) -> None:
    thermal = "sys/class/thermal"
    put(tmp_path, {f"{thermal}/cooling_device0/type": "pwm-fan\n", f"{thermal}/cooling_device0/cur_state": "4\n"})
    cooling = CoolingDevices(tmp_path)
    cooling.scan()
    assert cooling.verdict() == Verdict()
    zone = f"{thermal}/thermal_zone0"
    put(
        tmp_path, {f"{zone}/type": "soc-thermal\n", f"{zone}/temp": "84000\n", f"{zone}/trip_point_0_type": "passive\n"}
    )
    put(
        tmp_path,
        {
            f"{zone}/trip_point_0_temp": "85000\n",
            f"{zone}/trip_point_1_type": "critical\n",
            f"{zone}/trip_point_1_temp": "1\n",
        },
    )
    trips = TripPoints(tmp_path)
    trips.scan()
    assert trips.verdict() == Verdict(False)
    put(tmp_path, {f"{zone}/temp": "85000\n"})
    assert trips.verdict() == Verdict(True, "heat (soc-thermal)")


def test_sensors_of_one_name_are_told_apart_and_the_hottest_are_kept(tmp_path: Path) -> None:
    for number in range(40):
        zone = f"sys/class/thermal/thermal_zone{number}"
        put(tmp_path, {f"{zone}/type": "acpitz\n", f"{zone}/temp": f"{20000 + 1000 * number}\n"})
    temperatures = Temperatures(tmp_path)
    temperatures.scan()
    found = temperatures.celsius()
    assert len(found) == 32 and max(found.values()) == 59.0 and found["acpitz 40"] == 59.0 and "acpitz" not in found


def test_gpu_cells_of_every_sort() -> None:
    found = parse_gpus(
        "A, 100, 40, 7, 50, 30.5, 0x0000000000000020\nB, 10, 40, [Not Supported], -, N/A, Active\n\nbroken\n"
    )
    assert [gpu.name for gpu in found] == ["A", "B"]
    assert (found[0].total_bytes, found[0].free_bytes, found[0].slow_reason) == (100 * 2**20, 40 * 2**20, "heat (gpu)")
    assert (found[1].total_bytes, found[1].free_bytes, found[1].percent, found[1].slow_reason) == (
        None,
        None,
        None,
        None,
    )


def test_firmware_fields_that_nobody_filled_in_are_no_name(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "To Be Filled By O.E.M.\n",
            "sys/class/dmi/id/product_name": "Default string\n",
        },
    )
    assert dmi_name(tmp_path) is None
    put(tmp_path, {"sys/class/dmi/id/sys_vendor": "HP\n", "sys/class/dmi/id/product_name": "HP EliteBook 840 G8\n"})
    assert dmi_name(tmp_path) == "HP EliteBook 840 G8"


def test_absurd_values_are_left_out_and_the_rest_stays() -> None:
    found = checked(
        {"battery_percent": 104.0, "power_watts": float("nan"), "memory_total_bytes": -1, "on_mains": False}
    )
    assert (found.battery_percent, found.power_watts, found.memory_total_bytes, found.on_mains) == (
        None,
        None,
        None,
        False,
    )


def test_files_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "number").write_bytes(b"-42.5\n\0")
    (tmp_path / "long").write_bytes(b"9" * 100_000)
    for name in ("folder", "empty", "nowhere", "bad\0name"):
        assert read_number(f"{tmp_path}/{name}") is None and read_text(f"{tmp_path}/{name}") is None
    assert read_number(tmp_path / "number") == -42.5 and read_number(tmp_path / "long") is None
    assert len(read_bytes(tmp_path / "long", 1000) or b"") == 1000
    assert folder_names(tmp_path / "number") is None
    assert folder_names(tmp_path) == ["empty", "folder", "long", "number"]


def test_a_pipe_in_place_of_a_sensor_does_not_block(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    assert read_number(tmp_path / "pipe") is None


def test_a_host_without_programs_runs_none() -> None:
    assert Host().run(["true"], 1.0) is None
