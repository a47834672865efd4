# SPDX-License-Identifier: Apache-2.0
"""Tiny real runs that are disturbed: each ends with the undisturbed digest, every update counted once. `make chaos`
runs 200 of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random

import pytest
from cluster import needs_mosquitto, needs_nats
from forked_workers import ForkedWorkers
from killer import Killer, Strike, disturbance, run_disturbed
from proxy import Faults, Script
from tiny import AtMostOnce, Recipe, Tiny, run_name, undisturbed
from workshop import Workshop

from benchmarks.disturbed import series, table
from coordinator.store.moving import move_ledger
from coordinator.store.places import database_of
from tests.postgres import Postgres

# Merges, two brokers killed, a damaged replica; a link that breaks, a broker that forgets everything.
SLICE = ((72, Tiny), pytest.param(43, Tiny, marks=pytest.mark.chaos))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, forked_workers: ForkedWorkers) -> Workshop:
    needs_mosquitto()
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder / "shared", forked_workers)


def test_a_seed_decides_what_is_done() -> None:
    marks = [0.0, 1.0, 3.0, 3.5, 4.0, 4.5]
    first = disturbance(7, marks)
    assert disturbance(7, marks) == first != disturbance(8, marks)
    assert 2 <= len(first.strikes) <= 5
    assert all(0 <= strike.after_seconds <= marks[strike.mark + 1] - marks[strike.mark] for strike in first.strikes)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "kind"), [*SLICE, pytest.param(72, AtMostOnce, marks=pytest.mark.chaos)])
def test_a_disturbed_run_ends_with_the_undisturbed_digest(
    seed: int, kind: type[Tiny], workshop: Workshop, tmp_path: Path
) -> None:
    done = run_disturbed(seed, tmp_path, workshop, kind=kind)
    assert sum(done[key] for key in done if key.startswith("kill")) >= 1, done


class _OverNats(Tiny):
    broker_kind = "nats"


# A broker is killed in each of them, with a store that is kept and with one that is not.
@pytest.mark.chaos
@pytest.mark.parametrize("seed", (4, 16, 19, 20))
def test_a_disturbed_run_over_nats_ends_with_the_undisturbed_digest(
    seed: int, workshop: Workshop, tmp_path: Path
) -> None:
    needs_nats()
    done = run_disturbed(seed, tmp_path, workshop, kind=_OverNats)
    assert done["kill broker"] >= 1, done
    print(done)


def test_lost_statuses_plans_and_commits_are_made_good(workshop: Workshop, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "run", Recipe()
    digest, _ = undisturbed(tmp_path / "undisturbed", workshop, recipe)
    lost = Script(
        up=Faults(drop=1.0, topics=("/status",)),
        down=Faults(drop=1.0, topics=(f"{run_name(folder)}/plan", "/down/commit")),
    )
    tiny, killer = _disturb(folder, workshop, recipe, lost)
    assert tiny.proxy.counts["drop"] >= 10 and killer.counts == {}
    assert tiny.check(digest)
    assert "refused" not in tiny.output(), "a commit that was lost is repeated, also when the round has closed since"


@pytest.mark.slow
def test_a_coordinator_killed_at_the_end_still_hears_everybody_s_last_word(workshop: Workshop, tmp_path: Path) -> None:
    recipe = Recipe(schedule="fresh")
    digest, _ = undisturbed(tmp_path / "undisturbed", workshop, recipe)
    strikes = [Strike(recipe.rounds + 1, 0.0, "coordinator", 0, 0.0, damage=False)]
    tiny, killer = _disturb(tmp_path / "run", workshop, recipe, Script(), strikes)
    assert killer.counts == {"kill coordinator": 1}
    assert tiny.check(digest)
    assert {node["digest"] for node in tiny.found()["nodes"].values()} == {digest} and len(
        tiny.found()["nodes"]
    ) == recipe.homes


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(6))
def test_a_run_whose_database_is_killed_and_that_is_moved_ends_with_the_undisturbed_digest(
    seed: int, workshop: Workshop, tmp_path: Path, postgres: Postgres
) -> None:
    recipe, chance = Recipe(schedule=("pool", "fresh")[seed % 2]), Random(f"database {seed}")
    digest, marks = undisturbed(tmp_path / "undisturbed", workshop, recipe)
    # It begins in a file or in the database, and is moved to the other one at some instant, with a coordinator killed.
    begins_there = chance.random() < 0.5
    tiny = Tiny(tmp_path / f"run-{seed}", workshop, recipe, ledger=postgres.section if begins_there else "")
    instants = sorted(chance.uniform(0.2, marks[-1]) for _ in range(5))
    what = ["move", *chance.choices(("database", "coordinator"), (3, 1), k=len(instants) - 1)]
    chance.shuffle(what)
    done: list[str] = []

    def strike() -> None:
        name = what[len(done)]
        if name == "database":
            postgres.kill()
            time.sleep(chance.choice((0.0, 0.3, 1.5)))
            postgres.start()
        elif not tiny.files.has_ledger():
            return
        else:
            tiny.kill_leader()
            if name == "move":
                move_ledger(tiny.files, postgres.database if database_of(tiny.files) is None else None)
            tiny.lead()
        done.append(name)

    reached: dict[int, float] = {}

    def watch() -> None:
        now, mark = time.monotonic(), tiny.mark()
        for passed in range(mark + 1):
            reached.setdefault(passed, now)
        if len(done) < len(instants) and not tiny.ended:
            at = instants[len(done)]
            part = max(index for index, begun in enumerate(marks[:-1]) if begun <= at)
            if part in reached and now >= reached[part] + at - marks[part]:
                strike()

    try:
        tiny.finish(watch)
        assert tiny.check(digest)
        assert (database_of(tiny.files) is None) is (begins_there is ("move" in done))
    finally:
        tiny.close()
    print(f"seed {seed}: {'database' if begins_there else 'file'} first, {', '.join(done)}")


def _disturb(
    folder: Path, workshop: Workshop, recipe: Recipe, script: Script, strikes: list[Strike] | None = None
) -> tuple[Tiny, Killer]:
    tiny = Tiny(folder, workshop, recipe, script)
    killer = Killer(tiny, strikes or [], Random(0))
    try:
        tiny.finish(killer.watch)
    finally:
        tiny.close()
    return tiny, killer


@pytest.mark.chaos
@pytest.mark.timeout(4 * 3600)
def test_two_hundred_disturbed_runs(tmp_path: Path) -> None:
    needs_mosquitto()
    rows = series(range(200), tmp_path, tmp_path / "rows.jsonl", at_once=2)
    print(table(rows))
    assert not [row for row in rows if "error" in row], json.dumps([row for row in rows if "error" in row], indent=1)
