# SPDX-License-Identifier: Apache-2.0
"""A plan of what to change on a device, step by step: as text for a person, and carried out so that a second time
changes nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_client.install.machine import Machine, Runner
from fedcore.errors import ConfigError, RunError
from fedcore.system.durable import flush_folder

__all__ = ["Command", "File", "Folder", "Gone", "Step", "Tree", "apply", "described"]


@dataclass(frozen=True)
class Folder:
    """A folder that there shall be; an owner is `user:group`, empty for whoever carries the plan out."""

    path: Path
    mode: int
    owner: str = ""


@dataclass(frozen=True)
class File:
    """A file with this content, mode and owner. What is secret is not shown."""

    path: Path
    content: bytes
    mode: int
    owner: str = ""
    secret: bool = False


@dataclass(frozen=True)
class Tree:
    """A copy of a folder, for everybody to read; like its source, no file more or less."""

    path: Path
    source: Path


@dataclass(frozen=True)
class Gone:
    """A file or folder that shall not be there."""

    path: Path


@dataclass(frozen=True)
class Command:
    """A program to call if one of these paths was changed, or if the check `unless` fails; without either, always."""

    arguments: tuple[str, ...]
    if_changed: tuple[Path, ...] = ()
    unless: tuple[str, ...] = ()


Step = Folder | File | Tree | Gone | Command


def described(step: Step) -> str:
    """A step in full, with a file's whole content."""
    match step:
        case Folder(path, mode, owner):
            return f"folder   {path}  {mode:04o} {owner}".rstrip()
        case File(path, content, mode, owner, secret):
            head = f"file     {path}  {mode:04o} {owner}".rstrip()
            if secret:
                return f"{head}\n    (secret, {len(content)} bytes)"
            return "\n".join(
                [head, *(f"    {line}".rstrip() for line in content.decode("utf-8", "replace").splitlines())]
            )
        case Tree(path, source):
            return f"copy     {path}  from {source}"
        case Gone(path):
            return f"remove   {path}"
        case Command(arguments, if_changed, unless):
            reasons = (
                [f"{if_changed[0]} changes"]
                if len(if_changed) == 1
                else ["anything above changes"]
                if if_changed
                else []
            ) + ([f"`{shlex.join(unless)}` fails"] if unless else [])
            return f"command  {shlex.join(arguments)}" + (f"\n    if {' or '.join(reasons)}" if reasons else "")


def apply(steps: Sequence[Step], machine: Machine, runner: Runner, say: Callable[[str], None]) -> int:
    """Carry a plan out.

    Args:
        steps: In order.
        machine: Where; paths of steps are seen from its root.
        runner: Calls programs.
        say: Gets one line for each thing that is changed.

    Returns:
        How many steps changed something.

    Raises:
        RunError: A program failed; what was done before stays, and the same plan can be carried out again.
        ConfigError: A file cannot be written.
    """
    changed: set[Path] = set()
    done = 0
    for step in steps:
        if isinstance(step, Command):
            happened = _call(step, changed, runner)
        else:
            try:
                happened = _put(step, machine)
            except OSError as error:
                raise ConfigError(
                    f"cannot be written: {error.strerror or error}", place=str(error.filename or step.path)
                ) from None
            if happened:
                changed.add(step.path)
        if happened:
            done += 1
            say(described(step).partition("\n")[0])
    return done


def _call(command: Command, changed: set[Path], runner: Runner) -> bool:
    conditional = command.if_changed or command.unless
    if (
        conditional
        and changed.isdisjoint(command.if_changed)
        and not (command.unless and runner(command.unless).code != 0)
    ):
        return False
    called = runner(command.arguments)
    if called.code != 0:
        lines = [line for line in called.output.splitlines() if line.strip()]
        said = f": {lines[0].strip()}" if lines else ""
        remedy = "fedkrso client logs" if command.arguments[0] == "systemctl" else "mend it and install again"
        raise RunError(f"failed with code {called.code}{said}", place=shlex.join(command.arguments), remedy=remedy)
    return True


def _put(step: Folder | File | Tree | Gone, machine: Machine) -> bool:
    """Whether anything had to be changed."""
    path = machine.path(step.path)
    match step:
        case Folder(_, mode, owner):
            made = not path.is_dir()
            path.mkdir(parents=True, exist_ok=True)
            return _own(path, mode, owner, machine) or made
        case File():
            if path.is_file() and not path.is_symlink() and path.read_bytes() == step.content:
                return _own(path, step.mode, step.owner, machine)
            _write(path, step, machine)
            return True
        case Tree(_, source):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _copy(source, path)
        case Gone():
            if not path.exists() and not path.is_symlink():
                return False
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            return True


def _write(path: Path, step: File, machine: Machine) -> None:
    """Beside it, closed to others from the start, then in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(step.content)
        file.flush()
        os.fsync(file.fileno())
    _own(beside, step.mode, step.owner, machine)
    beside.replace(path)
    flush_folder(path.parent)


def _own(path: Path, mode: int, owner: str, machine: Machine) -> bool:
    """Give a path its mode and owner; whether they were others."""
    found = path.stat()
    wanted = _ids(owner, machine) if owner and machine.is_root else (found.st_uid, found.st_gid)
    if (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, *wanted):
        return False
    if wanted != (found.st_uid, found.st_gid):
        os.chown(path, *wanted)
    path.chmod(mode)
    return True


def _ids(owner: str, machine: Machine) -> tuple[int, int]:
    """Numbers of a user and a group, as the device itself knows them."""
    user, _, group = owner.partition(":")
    return _number(machine, "etc/passwd", user), _number(machine, "etc/group", group)


def _number(machine: Machine, table: str, name: str) -> int:
    if name == "root":
        return 0
    for line in (machine.root / table).read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2])
    raise ConfigError(
        f"there is no {name!r}",
        place=str(machine.root / table),
        remedy="systemd-sysusers makes it from /etc/sysusers.d/fedkrso.conf",
    )


def _copy(source: Path, target: Path) -> bool:
    """Make a folder like another, file by file, so that an interrupted copy goes on; whether anything differed."""
    # A downloaded model's files may be links into a store beside it: what they lead to is copied.
    wanted = {path.relative_to(source) for path in _files(source)}
    there = {path.relative_to(target) for path in _files(target)}
    for name in there - wanted:
        (target / name).unlink()
    different = [name for name in wanted if not _alike(source / name, target / name)]
    for name in sorted(different):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        shutil.copy2(source / name, beside)
        beside.chmod(0o644)
        beside.replace(path)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    return bool(different or there - wanted)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _alike(one: Path, other: Path) -> bool:
    """By size and time, which a copy keeps; a gigabyte is not read for this."""
    with contextlib.suppress(OSError):
        a, b = one.stat(), other.stat()
        return (a.st_size, int(a.st_mtime)) == (b.st_size, int(b.st_mtime))
    return False
