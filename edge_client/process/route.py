# SPDX-License-Identifier: Apache-2.0
"""How a node computes: where (`cpu`, `cuda`) and in which dtype, chosen from what was measured on this very machine,
and remembered.

Processors differ by orders of magnitude where one would not look: on those with AVX2 alone a bfloat16 product is over a
hundred times slower backward than float32, on those with AVX-512 BF16 it is three times faster. So the layer that
trains is measured (`edge_client.process.route_probe`, in processes of their own) and the choice is a pure function of
the measurements. They are kept in a file whose name is a hash of all that decides them; with the file there, the choice
never changes by itself.

This half imports no torch: values, choice and file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fedcore.errors import ConfigError, WorkerError
from fedcore.fields.types import BaseKind
from fedcore.worker.messages import Route

__all__ = [
    "DTYPES",
    "PROBE_VERSION",
    "SHAPES",
    "Part",
    "Probe",
    "Shape",
    "Timing",
    "cache_folder",
    "choose",
    "deciding",
    "key_of",
    "load",
    "needed_parts",
    "path_of",
    "store",
]

# Another number makes every machine measure again.
PROBE_VERSION = 1
DTYPES = ("float32", "bfloat16", "float16")
# So much faster than float32 a 16-bit type must be, in each direction, for noise not to decide.
_MARGIN = 1.2
# At the small shape, where starting a product costs as much as the product, it need only not be clearly slower.
_LEAST_SMALL = 0.8
# These change which instructions the libraries use, or which accelerators there are.
_DECIDING_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)


class Shape(msgspec.Struct, frozen=True):
    """A layer's weight (rows, columns) and the tokens that go through it at once."""

    rows: int
    columns: int
    tokens: int


SHAPES = (Shape(384, 384, 320), Shape(2816, 1024, 512))
"""What is measured: attention of a small sentence model under a batch of short texts, and the MLP of one of half a
billion parameters."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One way of computing."""

    torch_device: str
    compute_dtype: str
    """Or `int8` for bitsandbytes' own product."""
    forward_seconds: tuple[float, ...] = ()
    """The best of several, for each shape in order; shorter where it was given up for being far too slow."""
    backward_seconds: tuple[float, ...] = ()
    error: float | None = None
    """Largest relative difference of a result from float32 on the processor."""
    problem: str = ""
    """Why it cannot be used; empty if it can."""

    @property
    def complete(self) -> bool:
        """Measured at every shape, and right."""
        return not self.problem and len(self.forward_seconds) == len(self.backward_seconds) == len(SHAPES)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one probing process found."""

    timings: tuple[Timing, ...] = ()
    facts: dict[str, str] = {}
    """For a person: instruction set, GPU, CUDA."""
    problem: str = ""
    """Why nothing could be measured."""

    def timing(self, compute_dtype: str) -> Timing | None:
        """The timing of a dtype."""
        return next((t for t in self.timings if t.compute_dtype == compute_dtype), None)


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, by part: `cpu`, `cuda`, `bitsandbytes-cpu`, `bitsandbytes-cuda`."""

    key: str
    parts: dict[str, Part] = {}


def needed_parts(torch_device: str, compute_dtype: str, base_kind: BaseKind) -> tuple[str, ...]:
    """Which parts a choice needs; none where the node file names both, or leaves nothing to choose.

    Example:
        >>> needed_parts("cpu", "auto", "int8"), needed_parts("auto", "auto", "int8")
        (('cpu',), ('cpu', 'cuda'))
        >>> needed_parts("cpu", "float32", "int8")
        ()
    """
    if torch_device == "auto":
        return ("cpu", "cuda")
    return (torch_device,) if _dtype_wanted(compute_dtype, base_kind) == "auto" else ()


def choose(parts: Mapping[str, Part], torch_device: str, compute_dtype: str, base_kind: BaseKind) -> Route:
    """The route of a node; pure.

    bfloat16 is taken where it is clearly faster in both directions, and an accelerator where its best is clearly faster
    than the processor's best. float16 is never chosen by itself: its gradients vanish below 6e-8 and its activations
    end at 65,504, and nothing here scales the loss. A float32 base is computed in float32: whoever keeps it wants its
    digits.

    Args:
        parts: What was measured.
        torch_device: The node's: `auto`, `cpu`, `cuda`.
        compute_dtype: The node's: `auto` or a dtype.
        base_kind: The run's.

    Raises:
        ConfigError: What the node file names does not work on this machine.
        WorkerError: Nothing works here.
    """
    dtype = _dtype_wanted(compute_dtype, base_kind)
    if not needed_parts(torch_device, compute_dtype, base_kind):
        named = "as the node file says" if compute_dtype != "auto" else "the run's base is float32"
        return Route(torch_device, dtype, named)
    found = {
        name: _best(parts.get(name), dtype) for name in (("cpu", "cuda") if torch_device == "auto" else (torch_device,))
    }
    working = {name: best for name, best in found.items() if best[0] is not None}
    if not working:
        return _nothing_works(parts, found, torch_device, dtype)
    name = min(working, key=lambda device: ("cpu", "cuda").index(device))
    timing, reason = working[name]
    if len(working) == 2:
        cuda = working["cuda"]
        assert timing is not None and cuda[0] is not None
        forward, backward = _ratios(timing, cuda[0])
        if min(forward[-1], backward[-1]) >= _MARGIN:
            (timing, _), name = cuda, "cuda"
            reason = f"{forward[-1]:.1f} and {backward[-1]:.1f} times as fast as the processor, forward and backward"
    assert timing is not None
    return Route(name, timing.compute_dtype, reason)


def cache_folder(environment: Mapping[str, str]) -> Path | None:
    """Where measurements are kept: what systemd gives a service, else the user's cache; None where there is neither.

    Example:
        >>> str(cache_folder({"XDG_CACHE_HOME": "/c", "HOME": "/home/me"}))
        '/c/fedkrso'
        >>> str(cache_folder({"STATE_DIRECTORY": "/var/lib/fedkrso"}))
        '/var/lib/fedkrso'
    """
    for name in ("CACHE_DIRECTORY", "STATE_DIRECTORY"):
        # systemd gives several folders with colons between them.
        if first := environment.get(name, "").split(":")[0]:
            return Path(first)
    for name, below in (("XDG_CACHE_HOME", "fedkrso"), ("HOME", ".cache/fedkrso")):
        if folder := environment.get(name, ""):
            return Path(folder) / below
    return None


def deciding(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """All that decides what a probe would find: libraries, processor, GPU with its driver, and variables that steer
    libraries."""
    # Takes megabytes, which an agent that only knows where the file is does not need.
    from importlib.metadata import PackageNotFoundError, version

    found = {
        "probe": str(PROBE_VERSION),
        "machine": platform.machine(),
        "processor": _processor(root),
        "gpu": _gpu(root),
    }
    for name in ("torch", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found | {name: environment[name] for name in _DECIDING_VARIABLES if name in environment}


def key_of(deciding_facts: Mapping[str, str]) -> str:
    """The name of a probe's file."""
    return hashlib.sha256(msgspec.json.encode(sorted(deciding_facts.items()))).hexdigest()[:16]


def path_of(folder: Path, key: str) -> Path:
    """Where a probe's measurements are kept, by their key."""
    return folder / f"compute-route-{key}.json"


def load(folder: Path, key: str) -> Probe:
    """What is remembered; an empty probe where nothing is, or where the file is damaged."""
    try:
        found = msgspec.json.decode(path_of(folder, key).read_bytes(), type=Probe)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Probe(key=key)
    return found if found.key == key else Probe(key=key)


def store(folder: Path, probe: Probe) -> bool:
    """Remember a probe; whether that was possible."""
    path = path_of(folder, probe.key)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(probe), indent=1))
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        return False
    return True


def _dtype_wanted(compute_dtype: str, base_kind: BaseKind) -> str:
    return "float32" if compute_dtype == "auto" and base_kind == "float32" else compute_dtype


def _best(part: Part | None, wanted: str) -> tuple[Timing | None, str]:
    """A device's best timing, or None, and why."""
    if part is None or part.problem:
        return None, part.problem if part is not None else "not measured"
    if wanted != "auto":
        timing = part.timing(wanted)
        problem = "not measured" if timing is None else timing.problem
        return (None, problem) if problem else (timing, "as the node file says")
    plain, half = part.timing("float32"), part.timing("bfloat16")
    if plain is None or not plain.complete:
        if half is not None and half.complete:
            return half, "float32 does not work here"
        return None, plain.problem if plain is not None and plain.problem else "not measured"
    if half is None or not half.complete:
        why = half.problem if half is not None and half.problem else "far slower"
        return plain, f"bfloat16: {why}"
    forward, backward = _ratios(plain, half)
    speed = f"bfloat16 is {forward[-1]:.1f} and {backward[-1]:.1f} times as fast as float32, forward and backward"
    faster = min(forward[-1], backward[-1]) >= _MARGIN and min(*forward, *backward) >= _LEAST_SMALL
    return (half if faster else plain), speed


def _ratios(slow: Timing, fast: Timing) -> tuple[list[float], list[float]]:
    """How many times as fast the second is, by shape: forward, backward."""
    forward = zip(slow.forward_seconds, fast.forward_seconds, strict=False)
    backward = zip(slow.backward_seconds, fast.backward_seconds, strict=False)
    return [a / b for a, b in forward], [a / b for a, b in backward]


def _nothing_works(
    parts: Mapping[str, Part], found: Mapping[str, tuple[Timing | None, str]], torch_device: str, dtype: str
) -> Route:
    cpu = parts.get("cpu")
    plain = cpu.timing("float32") if cpu is not None else None
    if torch_device != "cuda" and dtype == "auto" and not (plain is not None and plain.problem):
        # The probe did not come through (no time, no memory): float32 on the processor is what works everywhere.
        return Route("cpu", "float32", f"not measured: {found['cpu'][1]}")
    why = "; ".join(f"{name}: {problem}" for name, (_, problem) in found.items())
    if torch_device == "cuda":
        raise ConfigError(
            f"CUDA does not work on this machine: {found['cuda'][1]}",
            place="torch_device",
            remedy='see what `fedkrso doctor` says, or write "cpu"',
        )
    if dtype != "auto":
        raise ConfigError(f"{dtype} does not work on this machine: {why}", place="compute_dtype", remedy='write "auto"')
    raise WorkerError(
        f"nothing computes on this machine: {why}", remedy="install torch anew; `fedkrso doctor` shows each way"
    )


def _processor(root: Path) -> str:
    """Model and a hash of the instruction sets, from the kernel; the machine's own word elsewhere."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    model = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    # Big and little cores of one processor may differ: all that occur.
    flags = sorted(
        {word for line in re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE) for word in line.split()}
    )
    return f"{model.group(1).strip() if model else ''} {hashlib.sha256(' '.join(flags).encode()).hexdigest()[:12]}"


def _gpu(root: Path) -> str:
    """GPU and driver without any library: NVIDIA's own files, or the release of a Jetson's system."""
    found = []
    for path in (root / "proc/driver/nvidia/version", root / "etc/nv_tegra_release", root / "proc/device-tree/model"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(encoding="utf-8", errors="replace").replace("\0", "").split("\n")[0].strip())
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        with contextlib.suppress(OSError):
            found += re.findall(r"^Model:\s*(.+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return "; ".join(found)
