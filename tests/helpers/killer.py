# SPDX-License-Identifier: Apache-2.0
"""A killer with a schedule: who is struck when, what is damaged on its disk, and how long until it starts again; all
from one seed.

Instants are drawn uniformly over the undisturbed run and belong to its rounds: a strike half a second into the
undisturbed round 2 comes half a second after the disturbed run's own round 2 has opened. So every phase is struck,
however much longer the disturbed run takes."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import psutil
from proxy import Faults, Script
from tiny import Recipe, Tiny, undisturbed
from workshop import Workshop

__all__ = ["Disturbance", "Killer", "Strike", "disturbance", "run_disturbed"]

Target = Literal["coordinator", "agent", "worker", "broker"]
_TARGETS: tuple[Target, ...] = ("coordinator", "coordinator", "agent", "agent", "worker", "worker", "broker")
# What a power cut may leave behind: files that were being written, and those that hold what can be fetched or trained
# again.
_FRAGILE = {
    "agent": (
        "inbox/*",
        "outbox/*/*.bin",
        "replica/state.bin",
        "replica/*.part",
        "replica/intervals/*",
        "outbox/*/*.part",
    ),
    "coordinator": ("updates/*/*.part", "updates/*/*.have", "published states/*.part", "state/*.part"),
}
# A run that has not ended by then hangs.


@dataclass(frozen=True)
class Strike:
    """One kill: in which part of the run (see `Tiny.mark`) and how long after it began, whom, for how long, and with
    what damage."""

    mark: int
    after_seconds: float
    target: Target
    home: int
    pause_seconds: float
    damage: bool


@dataclass(frozen=True)
class Disturbance:
    """Everything that is done to one run."""

    seed: int
    recipe: Recipe
    script: Script
    persistence: bool
    strikes: tuple[Strike, ...]


def recipe_of(seed: int) -> Recipe:
    """Which run a seed disturbs: two homes or three, a pool that stays or fresh seeds and merges."""
    chance = Random(f"recipe {seed}")
    return Recipe(homes=3 if chance.random() < 0.25 else 2, schedule="fresh" if chance.random() < 0.4 else "pool")


def disturbance(seed: int, marks: Sequence[float], recipe: Recipe | None = None) -> Disturbance:
    """What a seed does to a run.

    Args:
        seed: Decides everything.
        marks: When the undisturbed run reached each mark, and its end, in seconds.
        recipe: Of the run; what the seed says where nothing is named.
    """
    chance, recipe = Random(f"disturbance {seed}"), recipe or recipe_of(seed)
    strikes = []
    for _ in range(chance.randint(2, 5)):
        at = chance.uniform(0.0, marks[-1])
        mark = max(index for index, begun in enumerate(marks[:-1]) if begun <= at)
        strikes.append(
            Strike(
                mark=mark,
                after_seconds=at - marks[mark],
                target=chance.choice(_TARGETS),
                home=chance.randrange(recipe.homes),
                pause_seconds=chance.choice((0.0, 0.2, 1.0)),
                damage=chance.random() < 0.5,
            )
        )
    strikes.sort(key=lambda strike: (strike.mark, strike.after_seconds))
    script = Script(seed, up=_faults(chance), down=_faults(chance))
    return Disturbance(seed, recipe, script, persistence=chance.random() < 0.5, strikes=tuple(strikes))


def _faults(chance: Random) -> Faults:
    """A direction's faults: none, a lossy link, one that breaks, a slow one, or some of each."""
    kind = chance.choice(("none", "lossy", "breaking", "slow", "all"))
    lossy, breaking = kind in ("lossy", "all"), kind in ("breaking", "all")
    return Faults(
        drop=0.08 if lossy else 0.0,
        duplicate=0.08 if lossy else 0.0,
        reorder=0.08 if lossy else 0.0,
        delay=0.05 if lossy else 0.0,
        cut=0.008 if breaking else 0.0,
        tear=0.008 if breaking else 0.0,
        bytes_per_second=chance.choice((20_000, 60_000)) if kind == "slow" else None,
    )


@dataclass
class Killer:
    """Strikes at a run; call `watch` often.

    Args:
        tiny: The run.
        strikes: In the order of their instants.
        chance: Decides which files are damaged and how.
    """

    tiny: Tiny
    strikes: Sequence[Strike]
    chance: Random
    counts: Counter[str] = field(default_factory=Counter)
    _reached: dict[int, float] = field(default_factory=dict)
    _next: int = 0

    def watch(self) -> None:
        """Strike if it is time to."""
        now, mark = time.monotonic(), self.tiny.mark()
        for passed in range(mark + 1):
            self._reached.setdefault(passed, now)
        while self._next < len(self.strikes) and not self.tiny.ended:
            strike = self.strikes[self._next]
            if strike.mark not in self._reached or now < self._reached[strike.mark] + strike.after_seconds:
                return
            self._next += 1
            self._strike(strike)
            now = time.monotonic()

    def _strike(self, strike: Strike) -> None:
        tiny = self.tiny
        match strike.target:
            case "coordinator":
                if tiny.leader is None or tiny.leader.poll() is not None:
                    return
                tiny.kill_leader()
                self._damage(strike, tiny.files.root, "coordinator")
                time.sleep(strike.pause_seconds)
                tiny.lead()
            case "agent":
                home = tiny.homes[strike.home]
                if home is None or home.poll() is not None:
                    return
                workers = tiny.workers(strike.home)
                home.kill()
                home.wait()
                psutil.wait_procs(workers, 10)
                self._damage(strike, tiny.node_folder(strike.home), "agent")
                time.sleep(strike.pause_seconds)
                tiny.join(strike.home)
            case "worker":
                workers = tiny.workers(strike.home)
                if not workers:
                    return
                for worker in workers:
                    # It may have ended by itself just now.
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.kill()
            case "broker":
                tiny.broker.kill()
                time.sleep(strike.pause_seconds)
                tiny.broker.start()
        self.counts[f"kill {strike.target}"] += 1

    def _damage(self, strike: Strike, folder: Path, whose: str) -> None:
        """Cut a file short at some length, or leave zeros where its end was: what a disk may show after a power cut."""
        found = sorted(
            {
                path
                for pattern in _FRAGILE[whose]
                for path in folder.glob(pattern)
                if path.is_file() and path.stat().st_size
            }
        )
        if not strike.damage or not found:
            return
        path = self.chance.choice(found)
        size = path.stat().st_size
        keep = self.chance.randrange(size)
        with path.open("r+b") as file:
            file.truncate(keep)
            if self.chance.random() < 0.5:
                file.truncate(size)
        kind = path.suffix if path.suffix in (".part", ".have") else path.parent.name
        self.counts[f"damage {kind}"] += 1


def run_disturbed(
    seed: int, folder: Path, workshop: Workshop, *, recipe: Recipe | None = None, kind: type[Tiny] = Tiny
) -> dict[str, Any]:
    """One disturbed run, checked against the undisturbed one of the same recipe; the folder is removed when all is
    right.

    Args:
        seed: Decides what is done to it.
        folder: The run lives beneath.
        workshop: What is shared.
        recipe: What is disturbed; what the seed says where nothing is named.
        kind: Of run; the undisturbed one is always a plain one.

    Returns:
        Counts of what was done to it, and how long it took.

    Raises:
        AssertionError: It did not end with the same digest, or an update was lost or counted twice; the folder stays.
    """
    recipe = recipe or recipe_of(seed)
    digest, marks = undisturbed(folder / "undisturbed", workshop, recipe)
    plan = disturbance(seed, marks, recipe)
    tiny = kind(folder / str(seed), workshop, plan.recipe, plan.script, persistence=plan.persistence)
    killer = Killer(tiny, plan.strikes, Random(f"damage {seed}"))
    try:
        seconds = tiny.finish(killer.watch)
        tiny.check(digest)
    finally:
        tiny.close()
    counts = killer.counts + Counter({fault: number for fault, number in tiny.proxy.counts.items() if fault != "pass"})
    shutil.rmtree(folder / str(seed))
    return {
        "seed": seed,
        "recipe": plan.recipe.name,
        "seconds": round(seconds, 2),
        "persistence": plan.persistence,
        **counts,
    }
