# SPDX-License-Identifier: Apache-2.0
"""A search for learning rates: what is tried, chosen, kept and told."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from coordinator.job import Job
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError, WorkerError
from fedcore.methods.fedkrso import FedKRSOSettings
from fedkrso.commands.tune import tune
from fedkrso.simulation import steps_for
from fedkrso.tuning import trials as trials_module
from fedkrso.tuning.search import Kept, Trial, Tried, best_of, job_lines, search
from fedkrso.tuning.trials import Measured


class Made:
    """Stands in for trials: accuracy falls with the distance of the rate from the best one, which is told."""

    def __init__(self, best: float, job: object) -> None:
        self.best, self.job, self.asked = best, job, list[Trial]()
        self.sizes = set[tuple[str, int, int]]()

    def rounds(self, method: FedKRSOSettings, head: str, rounds: int, again: int) -> object:
        factor = method.learning_rate / 1e-3
        self.sizes.add((head, rounds, again))
        self.asked.append(Trial(head, round(factor, 6)))  # type: ignore[arg-type]
        if factor > 50:
            raise WorkerError("the loss is not finite")
        for number in range(1, rounds + 1):
            yield Measured(number, 0.5 + 0.4 / (1 + abs(factor - self.best)) - 0.01 * (head == "random"), 1.0)


class Named:
    method = FedKRSOSettings()


@pytest.mark.parametrize(
    ("best", "factors", "beyond"),
    [(0.3, (0.1, 0.3, 1.0), []), (9.0, (1.0, 3.0), [9.0, 30.0]), (0.01, (0.1, 1.0), [0.03, 0.01])],
)
def test_the_best_is_looked_for_until_it_lies_inside(
    tmp_path: Path, best: float, factors: tuple[float, ...], beyond: list[float]
) -> None:
    made = Made(best, Named())
    kept = Kept(tmp_path / "tried.json", b"about")
    found = search(made, kept, ("ridge", "random"), 2, factors)  # type: ignore[arg-type]
    assert found.trial.head == "ridge" and found.trial.factor == pytest.approx(best)
    both = [Trial(head, factor) for head in ("ridge", "random") for factor in factors]  # type: ignore[arg-type]
    assert [one.trial for one in kept.all] == [*both, *(Trial("ridge", factor) for factor in beyond)]
    # A second time nothing is left to do; about something else it is not the same search.
    again = Made(best, Named())
    assert search(again, Kept(tmp_path / "tried.json", b"about"), ("ridge", "random"), 2, factors) == found  # type: ignore[arg-type]
    assert all(trial not in made.asked for trial in again.asked)
    with pytest.raises(ConfigError, match="these trials are of another job"):
        Kept(tmp_path / "tried.json", b"another")


def test_a_trial_that_fails_is_told_and_is_not_chosen(tmp_path: Path) -> None:
    told: list[str] = []
    kept = Kept(tmp_path / "tried.json", b"")
    found = search(Made(1.0, Named()), kept, ("random",), 2, (1.0, 0.3, 100.0), told.append)  # type: ignore[arg-type]
    assert found.trial.factor == 1.0 and any("the loss is not finite" in line for line in told)
    with pytest.raises(ConfigError, match="no trial came to its end: the loss"):
        best_of([one for one in kept.all if one.failed])


def test_a_head_ends_trials_that_begin_with_one_where_it_ends_the_run(tmp_path: Path) -> None:
    made, told = Made(1.0, Named()), list[str]()
    kept = Kept(tmp_path / "tried.json", b"")
    search(made, kept, ("ridge", "random"), 3, (0.3, 1.0, 3.0), told.append, ends=True)  # type: ignore[arg-type]
    assert made.sizes == {("ridge", 4, 2), ("random", 3, 0)}
    assert any("ridge head" in line and "round 4 of 4" in line for line in told)


def test_equal_accuracies_are_told_apart_by_loss() -> None:
    rounds = [(Measured(1, 0.8, 0.5),), (Measured(1, 0.8, 0.4),), (Measured(1, 0.7, 0.1),)]
    tried = [Tried(Trial("random", float(number)), one) for number, one in enumerate(rounds)]
    assert best_of(tried) is tried[1]
    assert list(job_lines(tried[1], FedKRSOSettings(), 60, head=True)) == [
        *("[head]", 'start = "random"', ""),
        *("[method]", "learning_rate = 0.001", "tensor_learning_rate = 0.002", "steps = 60"),
    ]
    assert steps_for([7], FedKRSOSettings(interval_steps=4, steps=8)) == 8


def test_a_job_is_tuned_from_one_file_and_goes_on_where_it_was_left(
    tiny_job: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job.read_text().replace('start = "random"', 'start = "auto"')
    tiny_job.write_text(job)
    words = [tiny_job, "--data", texts, "--nodes", 2, "--rounds", 2, "--factors", "0.3,1", "--threads", 1]

    def run(*more: object) -> str:
        done = CliRunner().invoke(tune, [*map(str, words), *map(str, more)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    class Interrupted(Exception):
        """As Ctrl-C."""

    with monkeypatch.context() as patch:
        # In the third trial.
        real, count = trials_module.Trials.rounds, [0]

        def rounds(*arguments: object) -> object:
            count[0] += 1
            if count[0] == 3:
                raise Interrupted
            return real(*arguments)  # type: ignore[arg-type]

        patch.setattr(trials_module.Trials, "rounds", rounds)
        with pytest.raises(Interrupted):
            run()
    output = run()
    assert "and a head at the end" not in output, "the job has too few rounds for one"
    assert "1 of 4" not in output and "3 of 4: random head" in output, "those that were done are not done again"
    assert "4 trials of 2 rounds: 2 nodes" in output and "frozen features, the head alone: accuracy" in output
    lines = output.partition("job file:\n")[2].strip()
    # What is told is what a job file understands.
    changed = job.replace('[head]\nstart = "auto"\n', "").partition("[method]")
    rest = changed[2].replace('\nname = "fedkrso"', "")
    tiny_job.write_text(changed[0] + lines + '\nname = "fedkrso"' + rest)
    found = load_config(tiny_job, Job)
    assert found.head.start in ("ridge", "random") and found.method.learning_rate > 0
    again = tmp_path / "again"
    with pytest.raises(ConfigError, match="another job, other data or other flags"):
        run("--rounds", 3)
    tiny_job.write_text(job.replace("rounds = 2", "rounds = 5"))
    longer = run("--factors", "1", "--head", "ridge", "--out", again)
    assert "1 trials of 2 rounds and a head at the end" in longer and "round 3 of 3" in longer
    assert not list((tiny_job.parent / "tiny-tune").glob("trials-*"))


def test_what_cannot_be_tuned_is_refused(tiny_job: Path, texts: Path) -> None:
    def refused(*words: object) -> str:
        with pytest.raises((ConfigError, click.UsageError)) as found:
            tune.main([str(tiny_job), *map(str, words)], standalone_mode=False)
        return str(found.value)

    assert "are no factors" in refused("--data", texts, "--factors", "1,x")
    assert "nothing to deal without --data" in refused("--nodes", 3)
    tiny_job.write_text(
        tiny_job.read_text().replace('name = "fedkrso"', 'name = "fedsa-lora"').replace("num_seeds = 2\n", "")
    )
    assert "has no model that nodes share" in refused("--data", texts)
