# SPDX-License-Identifier: Apache-2.0
"""What a machine says that it is: device tree, firmware tables, operating system, processor. Readable by anybody."""

from __future__ import annotations

import re
from pathlib import Path

from devices.files import read_text

__all__ = ["compatible", "device_tree_model", "dmi_name", "machine", "operating_system", "processor"]

# What firmware says when its maker did not fill the field in.
_EMPTY = re.compile(
    r"to be filled.*|default string|system (?:product name|manufacturer|version)"
    r"|not (?:applicable|specified)|none|o\.e\.m\.|invalid|0+|x\.x",
    re.IGNORECASE,
)
# Implementer and part of Arm processors on the boards that we know (MIDR_EL1; Arm's and NVIDIA's reference manuals).
_ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd83"): "Neoverse V3AE",
    ("0x4e", "0x003"): "NVIDIA Denver 2",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}


def compatible(root: Path) -> tuple[str, ...]:
    """The device tree's list of what the board is, the most special first: `nvidia,p3768-0000+p3767-0005`,
    `nvidia,tegra234`.

    In containers /proc/device-tree is often hidden, and /sys has the same.
    """
    for path in ("proc/device-tree/compatible", "sys/firmware/devicetree/base/compatible"):
        if (text := read_text(root / path, 4096)) is not None:
            return tuple(part for part in text.split("\0") if part)
    return ()


def device_tree_model(root: Path) -> str | None:
    """The board's name in the device tree."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if (text := read_text(root / path, 512)) is not None:
            return _clean(text)
    return None


def dmi_name(root: Path) -> str | None:
    """Vendor and product of a PC, as its firmware says: `LENOVO ThinkPad X1 Carbon Gen 9`."""
    folder = root / "sys/class/dmi/id"
    vendor, product, version = (_filled(folder / name) for name in ("sys_vendor", "product_name", "product_version"))
    if vendor is not None and vendor.lower() == "lenovo" and version is not None and re.search(r"[A-Za-z]{3}", version):
        product = version  # Lenovo's product name is an order number
    if product is None:
        return vendor
    return product if vendor is None or product.lower().startswith(vendor.lower().split()[0]) else f"{vendor} {product}"


def operating_system(root: Path) -> str | None:
    """`Debian GNU/Linux 12 (bookworm)`."""
    for path in ("etc/os-release", "usr/lib/os-release"):
        found = re.search(r'^PRETTY_NAME=["\']?([^"\'\n]{1,80})', read_text(root / path) or "", re.MULTILINE)
        if found:
            return _clean(found.group(1))
    return None


def processor(root: Path) -> str | None:
    """`Intel(R) Core(TM) i5-1135G7`, `Cortex-A78AE`; None for one that only has a number, which is not in our table."""
    text = read_text(root / "proc/cpuinfo", 16_384) or ""
    found = re.search(r"^model name\s*: (?!ARMv)(.{1,80})", text, re.MULTILINE)
    if found is not None and (name := _clean(found.group(1))) is not None:
        return name
    makers = dict.fromkeys(re.findall(r"^CPU implementer\s*: (0x[0-9a-f]{2})$", text, re.MULTILINE))
    parts = dict.fromkeys(re.findall(r"^CPU part\s*: (0x[0-9a-f]{3})$", text, re.MULTILINE))
    names = [known for part in parts for maker in makers if (known := _ARM_PARTS.get((maker, part))) is not None]
    return " + ".join(names) or None


def machine(root: Path) -> str | None:
    """`aarch64`, as the kernel says since Linux 6.1."""
    text = read_text(root / "proc/sys/kernel/arch", 64)
    return text if text is not None and re.fullmatch(r"\w{1,20}", text) else None


def _filled(path: Path) -> str | None:
    text = _clean(read_text(path, 256) or "")
    return None if text is None or _EMPTY.fullmatch(text) else text


def _clean(text: str) -> str | None:
    """One line that a terminal can show."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:100]
    return line or None
