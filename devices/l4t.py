# SPDX-License-Identifier: Apache-2.0
"""Jetson's operating system (L4T) and modules: which release is which JetPack, which module has what chip and memory.

Tables from NVIDIA's release notes; module numbers as they stand in the device tree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.files import read_text
from devices.programs import RunProgram

__all__ = ["Chip", "catalogue_name", "chip_of", "jetpack", "l4t_version"]

_JETPACKS = {
    "32.1": "4.2",
    "32.2": "4.2.1",
    "32.2.1": "4.2.2",
    "32.2.3": "4.2.3",
    "32.3.1": "4.3",
    "32.4.2": "4.4 DP",
    "32.4.3": "4.4",
    "32.4.4": "4.4.1",
    "32.5": "4.5",
    "32.5.1": "4.5.1",
    "32.5.2": "4.5.1",
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "34.1": "5.0 DP",
    "34.1.1": "5.0.1 DP",
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5": "5.1.3",
    "35.6": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.4": "5.1.6",
    "36.2": "6.0 DP",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
    "39.2.1": "7.2.1",
}
_MAJORS = {"28": "3", "31": "4", "32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}


@dataclass(frozen=True)
class Chip:
    """A Tegra chip: its name, its GPU, and what that can compute."""

    name: str
    gpu: str
    compute_capability: tuple[int, int]


_CHIPS = {
    chip.name: chip
    for chip in (
        Chip("tegra210", "Maxwell", (5, 3)),
        Chip("tegra186", "Pascal", (6, 2)),
        Chip("tegra194", "Volta", (7, 2)),
        Chip("tegra234", "Ampere", (8, 7)),
        Chip("tegra264", "Blackwell", (11, 0)),
    )
}
# Module number -> family; carriers of other makers have names of their own, but say the module.
_MODULES = {
    "p2888": "jetson-agx-xavier",
    "p3668": "jetson-xavier-nx",
    "p3701": "jetson-agx-orin",
    "p3767-0000": "jetson-orin-nx",
    "p3767-0001": "jetson-orin-nx",
    "p3767-0003": "jetson-orin-nano",
    "p3767-0004": "jetson-orin-nano",
    "p3767-0005": "jetson-orin-nano",
    "p3834": "jetson-thor",
}
# Where the device tree has no module number: chip and a word of the model's name.
_MODELS = (
    ("tegra194", "xavier nx", "jetson-xavier-nx"),
    ("tegra194", "agx", "jetson-agx-xavier"),
    ("tegra234", "orin nano", "jetson-orin-nano"),
    ("tegra234", "orin nx", "jetson-orin-nx"),
    ("tegra234", "agx", "jetson-agx-orin"),
    ("tegra264", "thor", "jetson-thor"),
)
_SIZES = {
    "jetson-agx-orin": (32, 64),
    "jetson-agx-xavier": (16, 32, 64),
    "jetson-orin-nano": (4, 8),
    "jetson-orin-nx": (8, 16),
    "jetson-thor": (64, 128),
    "jetson-xavier-nx": (8, 16),
}


def chip_of(compatible: Sequence[str]) -> Chip | None:
    """The chip that a device tree names; None for one that we do not know.

    Example:
        >>> chip_of(["nvidia,p3768-0000+p3767-0005", "nvidia,tegra234"]).compute_capability
        (8, 7)
    """
    for name in compatible:
        if (chip := _CHIPS.get(name.removeprefix("nvidia,"))) is not None:
            return chip
    return None


def catalogue_name(
    chip: Chip | None, compatible: Sequence[str], model: str | None, total_bytes: int | None
) -> str | None:
    """The module's name in `devices.catalogue`, by chip, module number or model, and the memory that the system sees.

    Example:
        >>> model = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
        >>> catalogue_name(chip_of(["nvidia,tegra234"]), [], model, 15 * 2**30)
        'jetson-orin-nx-16gb'
    """
    if chip is None or total_bytes is None:
        return None
    family = next((_MODULES[key] for text in compatible for key in _module_keys(text) if key in _MODULES), None)
    if family is None:
        family = next(
            (name for needed, word, name in _MODELS if needed == chip.name and word in (model or "").lower()), None
        )
    if family is None:
        return None
    # The firmware keeps up to a fifth for itself, so the size is the next one above.
    size = next((size for size in _SIZES[family] if total_bytes <= size * 2**30), None)
    return None if size is None else f"{family}-{size}gb"


def l4t_version(root: Path, run: RunProgram) -> str | None:
    """`36.4.3`, from the release file, or where a container or a slim system lacks it, from the package. Its BOARD is
    wrong at times."""
    found = re.search(
        r"^# R(\d{2}) \(release\), REVISION: (\d[\d.]{0,8})", read_text(root / "etc/nv_tegra_release", 1024) or ""
    )
    if found:
        return f"{found.group(1)}.{found.group(2)}".rstrip(".")
    text = run(["dpkg-query", "--show", "--showformat=${Version}", "nvidia-l4t-core"], 5.0)
    package = re.match(r"(\d{2}\.\d[\d.]{0,8})-", text or "")
    return package.group(1) if package else None


def jetpack(l4t: str) -> str | None:
    """Which JetPack a release of L4T belongs to; only its first number where we do not know more.

    Example:
        >>> jetpack("36.4.3"), jetpack("36.4.7"), jetpack("35.5.0"), jetpack("77.1")
        ('6.2', '6', '5.1.3', None)
    """
    return _JETPACKS.get(l4t) or _JETPACKS.get(l4t.removesuffix(".0")) or _MAJORS.get(l4t.split(".")[0])


def _module_keys(text: str) -> list[str]:
    """`nvidia,p3768-0000+p3767-0005-super` -> p3767-0005, p3767, p3768-0000, p3768; the module stands after the
    carrier."""
    found = re.findall(r"p\d{4}-\d{4}", text)
    return [key for number in reversed(found) for key in (number, number[:5])]
