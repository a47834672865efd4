# SPDX-License-Identifier: Apache-2.0
"""How this machine computes: every way measured with real products, the route that follows, and known mismatches of
torch and GPU."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

from edge_client.doctor.base import Check, Surroundings, refused
from edge_client.node import Node
from edge_client.process.route import Part, Probe, Timing, choose, store
from edge_client.process.route_probe import known_probe
from fedcore.errors import FedkrsoError
from fedcore.system.processes import worker_python

__all__ = ["LOAD_SECONDS", "compute", "worker"]

_GROUP = "compute"
LOAD_SECONDS = 180.0
# What is remembered beside what was measured.
_LOADED = "worker"
# L4T's first numbers, and the CUDA that its libraries are.
_CUDA_OF_L4T = {
    "35": "11.4",
    "36.2": "12.2",
    "36.3": "12.4",
    "36.4": "12.6",
    "36.5": "12.6",
    "38": "13.0",
    "39": "13.2",
}


def compute(around: Surroundings, node: Node | None) -> Sequence[Check]:
    """Every check of the group `compute`: libraries, devices, dtypes, the route that follows."""
    if find_spec("torch") is None:
        return [
            Check(
                _GROUP,
                "route",
                "error" if node else "warning",
                "torch is not installed",
                "pip install 'fedkrso[train]'",
            )
        ]
    checks: list[Check] = []
    gpu = around.device.facts.accelerator
    names = ["cpu", *(["cuda"] if gpu is not None or (node is not None and node.torch_device != "cpu") else [])]
    names += [f"bitsandbytes-{name}" for name in names] if find_spec("bitsandbytes") else []
    probe, where = _probe(around, names, node)
    for name in names:
        checks += list(_part(around, name, probe.parts.get(name), node))
    checks.append(_route(probe.parts, node, around))
    if where:
        checks.append(Check(_GROUP, "remembered in", "ok", where))
    return checks


def _probe(around: Surroundings, names: Sequence[str], node: Node | None) -> tuple[Probe, str]:
    probe, path = known_probe(around.environment)
    if around.quick:
        return probe, str(path) if path is not None and probe.parts else ""
    parts = dict(probe.parts)
    for name in names:
        if around.again or name not in parts:
            parts[name] = around.probe(name, (node.threads if node else 0) or os.cpu_count() or 1, around.environment)
    found = Probe(key=probe.key, parts=parts)
    kept = Probe(key=probe.key, parts={name: part for name, part in parts.items() if not part.problem})
    kept_there = path is not None and (kept.parts == probe.parts or store(path.parent, kept))
    return found, str(path) if kept_there else ""


def worker(around: Surroundings) -> Sequence[Check]:
    """Loads everything that a worker does; once for these versions of it, unless it is to be measured again."""
    if around.quick or find_spec("torch") is None:
        return []
    versions = _versions()
    probe, path = known_probe(around.environment)
    known = probe.parts.get(_LOADED)
    if known is not None and known.facts == versions and not around.again:
        return [Check(_GROUP, "worker", "ok", "its libraries load")]
    command = [worker_python(around.environment), "-c", "import edge_client.worker.programs.serve"]
    try:
        done = subprocess.run(
            command, env=dict(around.environment), capture_output=True, text=True, timeout=LOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        found = f"its libraries did not load within {LOAD_SECONDS:.0f} s"
        return [Check(_GROUP, "worker", "error", found, "a faster disk")]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        found = f"its libraries do not load: {last}"
        return [Check(_GROUP, "worker", "error", found, "pip install --upgrade 'fedkrso[train]'")]
    if path is not None:
        store(path.parent, Probe(key=probe.key, parts={**probe.parts, _LOADED: Part(facts=versions)}))
    return [Check(_GROUP, "worker", "ok", "its libraries load")]


def _versions() -> dict[str, str]:
    """Of this package and all that training needs."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        needed = requires("fedkrso") or []
    except PackageNotFoundError:
        needed = []
    found = {}
    for line in ("fedkrso", *needed):
        name = re.split(r"[^\w.-]", line)[0]
        if ";" in line and "train" not in line:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _part(around: Surroundings, name: str, part: Part | None, node: Node | None) -> Iterator[Check]:
    library = name.startswith("bitsandbytes-")
    label = f"bitsandbytes on {name.removeprefix('bitsandbytes-')}" if library else name
    if part is None:
        yield Check(_GROUP, label, "ok", "not measured yet (--quick)")
        return
    needed = node is not None and node.torch_device == name
    if part.problem:
        yield Check(_GROUP, label, "error" if needed else "warning", part.problem, _remedy(around, name, part))
        return
    for timing in part.timings:
        check = label if library else f"{timing.compute_dtype} on {name}"
        if not timing.problem:
            yield Check(_GROUP, check, "ok", _times(timing))
            continue
        wrong = not library and timing.compute_dtype == "float32" and (name == "cpu" or needed)
        remedy = "it is not used: the layer that trains is our own" if library else _remedy(around, name, part)
        yield Check(_GROUP, check, "error" if wrong else "warning", timing.problem, remedy)


def _times(timing: Timing) -> str:
    """Milliseconds at both shapes, forward and backward."""
    pairs = zip(timing.forward_seconds, timing.backward_seconds, strict=True)
    shapes = ("small", "large")
    text = ", ".join(f"{name} {1e3 * f:.1f} + {1e3 * b:.1f} ms" for name, (f, b) in zip(shapes, pairs, strict=False))
    slow = "" if timing.complete else " (far too slow: the large one was left out)"
    error = "" if timing.error is None else f"; {timing.error:.2%} off float32"
    return f"forward + backward {text}{slow}{error}"


def _route(parts: Mapping[str, Part], node: Node | None, around: Surroundings) -> Check:
    torch_device, dtype = (node.torch_device, node.compute_dtype) if node else ("cpu", "auto")
    if "cpu" not in parts and around.quick and "auto" in (torch_device, dtype):
        return Check(_GROUP, "route", "ok", "not measured yet: the first start of a worker measures it")
    try:
        route = choose(parts, torch_device, dtype, "int8")
    except FedkrsoError as error:
        return refused(_GROUP, "route", error)
    return Check(_GROUP, "route", "ok", f"{route.words}: {route.reason}")


def _remedy(around: Surroundings, name: str, part: Part) -> str:
    """What usually is behind a part that does not work."""
    if not name.endswith("cuda"):
        return "install torch anew"
    facts = around.device.facts
    l4t = re.search(r"L4T (\d+)\.(\d+)", facts.system or "")
    cuda = part.facts.get("cuda", "")
    if l4t is not None:
        wanted = _CUDA_OF_L4T.get(f"{l4t.group(1)}.{l4t.group(2)}") or _CUDA_OF_L4T.get(l4t.group(1), "")
        theirs = (
            f" (this one is for CUDA {cuda}, the system has {wanted})"
            if cuda and wanted and not cuda.startswith(wanted)
            else ""
        )
        return f"install the torch that is made for this JetPack, not the one from PyPI, which is for servers{theirs}"
    built, capability = part.facts.get("built for", ""), part.facts.get("compute capability", "")
    if built and capability and f"sm_{capability.replace('.', '')}" not in built:
        return f"this torch is built for {built}; the GPU needs sm_{capability.replace('.', '')}"
    return 'a torch with CUDA that fits the driver, or torch_device = "cpu"'
