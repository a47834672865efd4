# SPDX-License-Identifier: Apache-2.0
"""Where versions of the agent lie: the environment that was installed by hand, which never changes, and two slots for
versions of later, one of which is free. A link says which of the three runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge_client.install.machine import Runner
from fedcore.errors import ConfigError, RunError
from fedcore.system.durable import flush_folder, write_durably

__all__ = ["BASE", "SLOTS", "Kept", "Pinned", "Slot", "Slots", "Trying"]

Slot = Literal["base", "a", "b"]
BASE: Final[Slot] = "base"
SLOTS: Final[tuple[Slot, ...]] = (BASE, "a", "b")
_VERSION: Final = "import importlib.metadata; print(importlib.metadata.version('fedkrso'))"
_SITE: Final = "import sysconfig; print(sysconfig.get_path('purelib'))"


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """A version, and the one wheel that counts as it.

    Attributes:
        version: As packages number it.
        sha256: Of the wheel.
    """

    version: str
    sha256: str

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise ConfigError(
                f"{self.sha256!r} is no SHA-256", place="--sha256", remedy="64 hexadecimal characters, of the wheel"
            )
        if not self.version or not set(self.version) <= set("0123456789abcdefghijklmnopqrstuvwxyz.+!"):
            raise ConfigError(f"{self.version!r} is no version", place="VERSION", remedy="such as 0.3.0")


class Trying(msgspec.Struct, frozen=True, kw_only=True):
    """A version that has not reported yet.

    Attributes:
        slot: Where it lies.
        before: What ran before it.
        pinned: What it is.
        starts: How often it was started since.
    """

    slot: Slot
    before: Slot
    pinned: Pinned
    starts: int = 0


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """`slots.json`: what outlives a power cut.

    Attributes:
        base: The environment that was installed by hand.
        before: What ran before the present version, for `--back`.
        trying: What has to report yet.
        refused: SHA-256 of wheels that did not.
        notice: Number of the newest notice of a fleet that was obeyed.
    """

    base: str
    before: Slot = BASE
    trying: Trying | None = None
    refused: tuple[str, ...] = ()
    notice: int = 0


class Slots:
    """The slots in a folder.

    Args:
        folder: Theirs.
        base: The environment that was installed by hand; the one that the folder knows, where it knows one.
        runner: Calls programs.
    """

    def __init__(self, folder: Path, base: Path, runner: Runner) -> None:
        self.folder, self._runner = folder, runner
        self._file = folder / "slots.json"
        try:
            self.kept = msgspec.json.decode(self._file.read_bytes(), type=Kept)
        except FileNotFoundError:
            self.kept = Kept(base=str(base))
        except msgspec.DecodeError as error:
            raise RunError(f"damaged: {error}", place=str(self._file), remedy="remove it: base runs then") from None

    @property
    def link(self) -> Path:
        """What a service's program goes through."""
        return self.folder / "current"

    @property
    def current(self) -> Slot:
        """What runs, or runs at the next start."""
        try:
            there = self.link.readlink()
        except OSError:
            return BASE
        return next((slot for slot in SLOTS if there == self.path(slot)), BASE)

    @property
    def free(self) -> Slot:
        """Where another version may go."""
        return "b" if self.current == "a" else "a"

    def path(self, slot: Slot) -> Path:
        """A slot's environment."""
        return Path(self.kept.base) if slot == BASE else self.folder / slot

    def keep(self, **changes: object) -> None:
        """Remember: durable when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kept = msgspec.structs.replace(self.kept, **changes)
        write_durably(self._file, msgspec.json.format(msgspec.json.encode(self.kept)))

    def point(self, slot: Slot) -> None:
        """Have a slot be what runs at the next start; in one instant, and durable when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / "current.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(self.path(slot))
        beside.replace(self.link)
        flush_folder(self.folder)

    def version(self, slot: Slot) -> str:
        """Version of fedkrso in a slot; empty where there is none."""
        python = self._python(slot)
        return self._ask(slot, _VERSION) if python.exists() else ""

    def make(self, pinned: Pinned, sources: tuple[str, ...]) -> Slot:
        """Install a version into the free slot: its own wheel alone, over the packages of the base.

        Args:
            pinned: Which, by its hash.
            sources: Arguments for pip that say where wheels are.

        Returns:
            The slot.

        Raises:
            RunError: There is no such wheel, or the base lacks what it needs.
        """
        slot = self.free
        folder, base = self.path(slot), self._python(BASE)
        shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = self.folder / "requirement.txt"
        wanted.write_text(f"fedkrso=={pinned.version} --hash=sha256:{pinned.sha256}\n", encoding="ascii")
        system = ("--system-site-packages",) if self._sees_the_system() else ()
        self._call("the environment", base, "-I", "-m", "venv", "--without-pip", *system, folder)
        # Isolated: a checkout that somebody stands in is no installed version.
        pip = (base, "-I", "-m", "pip", "--python", self._python(slot), "--disable-pip-version-check", "--no-input")
        how = ("--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-cache-dir")
        self._call("the wheel", *pip, "install", *how, *sources, "--requirement", wanted)
        # After it: pip would take the base's own version for the one that is wanted.
        # A line that is run, so that what the base itself adds to its path counts too.
        line = f"import site; site.addsitedir({self._ask(BASE, _SITE)!r})\n"
        (Path(self._ask(slot, _SITE)) / "base.pth").write_text(line, encoding="utf-8")
        lacks = [line for line in self._runner([*map(str, pip), "check"]).output.splitlines() if _is_ours(line)]
        if lacks:
            remedy = f"{self.path(BASE)}/bin/pip install what it needs, then again"
            raise RunError(f"{lacks[0]}", place=str(self.path(BASE)), remedy=remedy)
        if (found := self.version(slot)) != pinned.version:
            raise RunError(f"the wheel is of version {found}, not {pinned.version}", place=str(folder))
        return slot

    def _sees_the_system(self) -> bool:
        """Whether the base takes packages of the system's Python, as torch on a Jetson."""
        try:
            lines = (self.path(BASE) / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return any(line.replace(" ", "") == "include-system-site-packages=true" for line in lines)

    def _python(self, slot: Slot) -> Path:
        return self.path(slot) / "bin" / "python"

    def _ask(self, slot: Slot, program: str) -> str:
        # Not from here: a folder with the same package in it would be asked in its place.
        called = self._runner([str(self._python(slot)), "-I", "-c", program])
        return called.output.strip() if called.code == 0 else ""

    def _call(self, what: str, *arguments: object) -> None:
        called = self._runner([str(argument) for argument in arguments])
        if called.code != 0:
            lines = [line for line in called.output.splitlines() if line.strip() and not line.startswith("WARNING")]
            said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no word")
            raise RunError(f"{what} could not be made: {said.strip()[:300]}", place=str(self.folder))


def _is_ours(line: str) -> bool:
    return line.startswith("fedkrso ")
