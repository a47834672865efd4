# SPDX-License-Identifier: Apache-2.0
"""Measuring the compute route in processes of their own, under a time limit, and remembering what came out.

A library that was built for another machine may import, say that all is well, and then end the process at its first
kernel: the process that asks must not be the one that dies. What was begun and not finished names the culprit, and the
rest is measured without it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from edge_client.process.route import (
    DTYPES,
    Part,
    Probe,
    Timing,
    cache_folder,
    choose,
    deciding,
    key_of,
    load,
    needed_parts,
    path_of,
    store,
)
from fedcore.fields.types import BaseKind
from fedcore.system.processes import die_with_parent, worker_python
from fedcore.worker.messages import Route

__all__ = ["LIMIT_SECONDS", "Line", "chosen_route", "known_probe", "measured_part", "probed"]

# Loading the libraries from a slow card takes most of it.
LIMIT_SECONDS = 180.0
_CANDIDATES = {"cpu": DTYPES, "cuda": DTYPES, "bitsandbytes-cpu": ("int8",), "bitsandbytes-cuda": ("int8",)}


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a probing process says, one JSON object a line: one of these."""

    begin: str = ""
    """It is about to run this candidate."""
    timing: Timing | None = None
    facts: dict[str, str] = {}
    problem: str = ""
    """Nothing can be measured."""


def chosen_route(
    torch_device: str,
    compute_dtype: str,
    base_kind: BaseKind,
    threads: int,
    folder: Path | None,
    environment: Mapping[str, str],
) -> Route:
    """The route that a node file's two keys lead to, measured first where it has to be.

    Args:
        torch_device: `auto`, `cpu`, `cuda`.
        compute_dtype: `auto` or a dtype.
        base_kind: The run's.
        threads: That training will use.
        folder: Where measurements are kept; None: nowhere.
        environment: Of this process.

    Raises:
        ConfigError: What is named does not work here.
        WorkerError: Nothing works here.
    """
    parts = needed_parts(torch_device, compute_dtype, base_kind)
    found = probed(parts, threads, folder, environment) if parts else Probe(key="")
    return choose(found.parts, torch_device, compute_dtype, base_kind)


def known_probe(environment: Mapping[str, str], folder: Path | None = None) -> tuple[Probe, Path | None]:
    """What is remembered for this machine as it is now, and the file."""
    key, folder = key_of(deciding(environment)), folder or cache_folder(environment)
    return (Probe(key=key), None) if folder is None else (load(folder, key), path_of(folder, key))


def probed(
    names: Iterable[str], threads: int, folder: Path | None, environment: Mapping[str, str], *, again: bool = False
) -> Probe:
    """These parts, measured where they are not remembered. Two processes that ask at once measure once.

    A part that could not be measured at all (no time, no memory) is not remembered.
    """
    key = key_of(deciding(environment))
    with _alone(folder, key):
        found = Probe(key=key) if folder is None else load(folder, key)
        parts = dict(found.parts)
        for name in names:
            if again or name not in parts:
                parts[name] = measured_part(name, threads, environment)
        found = Probe(key=key, parts=parts)
        if folder is not None:
            store(folder, Probe(key=key, parts={name: part for name, part in parts.items() if not part.problem}))
    return found


def measured_part(
    name: str,
    threads: int,
    environment: Mapping[str, str],
    *,
    limit_seconds: float = LIMIT_SECONDS,
    command: tuple[str, ...] = (),
) -> Part:
    """Measure a part now.

    Args:
        name: `cpu`, `cuda`, `bitsandbytes-cpu`, `bitsandbytes-cuda`.
        threads: For the processor's products.
        environment: Of the process.
        limit_seconds: After which a process is killed.
        command: The probing program; ours by default.
    """
    broken: dict[str, Timing] = {}
    facts: dict[str, str] = {}
    while candidates := tuple(c for c in _CANDIDATES[name] if c not in broken):
        lines, end = _run(name, candidates, threads, environment, limit_seconds, command)
        facts = next((line.facts for line in lines if line.facts), facts)
        problem = next((line.problem for line in lines if line.problem), "")
        timings = {line.timing.compute_dtype: line.timing for line in lines if line.timing is not None}
        if problem or not end:
            return Part(timings=tuple((timings | broken).values()), facts=facts, problem=problem)
        begun = [line.begin for line in lines if line.begin]
        if not begun:
            # Not even the libraries came up.
            return Part(facts=facts, problem=end)
        culprit = begun[-1]
        broken[culprit] = Timing(torch_device=name.removeprefix("bitsandbytes-"), compute_dtype=culprit, problem=end)
    return Part(timings=tuple(broken.values()), facts=facts)


def _run(
    name: str,
    candidates: tuple[str, ...],
    threads: int,
    environment: Mapping[str, str],
    limit_seconds: float,
    command: tuple[str, ...],
) -> tuple[list[Line], str]:
    """One process: what it said, and how it ended if not well."""
    program = command or (worker_python(environment), "-m", "edge_client.worker.programs.route")
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as said, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [*program, str(theirs), name, ",".join(candidates), str(threads)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs,),
                # As a worker trains: threads that spin while they wait would slow each other down on busy cores.
                env={**environment, "OMP_WAIT_POLICY": "PASSIVE"},
                preexec_fn=die_with_parent,
            )
        finally:
            os.close(theirs)
        lines: list[Line] = []
        reader = threading.Thread(target=_read, args=(said, lines), daemon=True)
        reader.start()
        try:
            code: int | None = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        reader.join()
        errors.seek(0)
        last = (errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines() or [""])[-1]
    return lines, _end(code, last, limit_seconds)


def _end(code: int | None, last: str, limit_seconds: float) -> str:
    if code is None:
        return f"no answer within {limit_seconds:.0f} s"
    if code < 0:
        return f"it ended the process (signal {-code}, {signal.Signals(-code).name})"
    return (last or f"it ended with {code}") if code else ""


def _read(said: BinaryIO, lines: list[Line]) -> None:
    for line in said:
        with contextlib.suppress(msgspec.DecodeError):
            lines.append(msgspec.json.decode(line, type=Line))


@contextlib.contextmanager
def _alone(folder: Path | None, key: str) -> Iterator[None]:
    """One at a time measures; without a folder to agree in, everybody does."""
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path_of(folder, key).with_suffix(".lock").open("wb"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
