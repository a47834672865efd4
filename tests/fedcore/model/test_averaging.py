# SPDX-License-Identifier: Apache-2.0
"""A run that ends with the mean of its last states: exactly that, and the same if it was interrupted."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.job import Job
from coordinator.run.model import GlobalModel, Learning
from coordinator.store.folder import RunFolder
from coordinator.store.statefile import load_state, save_state
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.model.averaging import LAST_ALONE, LastStates
from fedcore.model.state import ExactState
from fedcore.round.training import SECOND
from tests.coordinator.run.test_model import learning
from tests.coordinator.run.test_model_buffered import Engine

__all__ = ["learning"]
ROUNDS = 4
FEDKRSO = FedKRSOSettings(rank=4, num_seeds=2, steps=20, projection="signs", bits=8, moments="rows")
FEDAVG = FedAvgSettings(steps=20, bits=8)
JOB = """run = "r"
[model]
folder = "m"
[task]
kind = "text-classification"
labels = ["a", "b"]
[broker]
url = "mqtts://h"
[round]
rounds = 6
average_last = {count}
[method]
{method}
"""


@given(st.lists(st.integers(-(2**44), 2**44), min_size=2, max_size=9))
def test_the_mean_is_exact_to_half_a_unit(values: list[int]) -> None:
    last, kept = LastStates(len(values), len(values)), ExactState(0, (), 0, {})
    for number, value in enumerate(values, 1):
        sums = {"w": np.array([[value]]), f"w{SECOND}": np.array([[number]])}
        kept = last.after(replace(kept, version=number, sums=sums), number)
    mean = Fraction(sum(values), len(values))
    assert int(kept.sums["w"][0, 0]) == (mean + Fraction(1, 2)).__floor__()
    assert kept.sums[f"w{SECOND}"] == len(values), "moments are no part of a model"
    assert not kept.windowed and not kept.window


def ended(learning: Learning, root: Path, last: LastStates, *, again_after: int = 0) -> tuple[Engine, list[ExactState]]:  # noqa: F811
    """A run to its end, with the states of its rounds; its coordinator begins again after a round."""
    run, states = Engine(replace(learning, last=last), RunFolder(root)), []
    for number in range(1, ROUNDS + 1):
        run.open(number)
        run.close([run.update("a", number, number), run.update("b", number, number)])
        states.append(run.model.state)
        if number == again_after:
            save_state(run.folder.state(number), run.model.state)
            run.model = GlobalModel(run.learning, run.model._keeping, number)
    return run, states


@pytest.mark.parametrize("method", [FEDKRSO, FEDAVG], ids=lambda method: str(method.name))
@pytest.mark.parametrize("again_after", [0, 2, 3])
def test_a_run_ends_with_the_mean_of_its_last_states(
    learning: Learning,  # noqa: F811
    tmp_path: Path,
    method: FedKRSOSettings | FedAvgSettings,
    again_after: int,
) -> None:
    learning = replace(learning, method=method)
    _, alone = ended(learning, tmp_path / "alone", LAST_ALONE)
    run, states = ended(learning, tmp_path / "mean", LastStates(3, ROUNDS), again_after=again_after)
    for number in range(ROUNDS - 1):
        assert states[number].publish().digest() == alone[number].publish().digest(), "until then nothing changes"
    for name, total in run.model.state.sums.items():
        expected = alone[-1].sums[name]
        if not name.endswith(SECOND):
            expected = (2 * np.sum([state.sums[name] for state in alone[1:]], axis=0) + 3) // 6
        assert np.array_equal(total, expected), name
    assert run.model.published.digest() == run.model.state.publish().digest() != alone[-1].publish().digest()
    # More rounds begin from it, with nothing kept of those before.
    assert not run.model.state.windowed


def test_what_is_kept_of_a_run_is_read_again(tmp_path: Path) -> None:
    state = ExactState(2, (), 0, {"w": np.array([[3]])}, window={"w": np.array([[5]])}, windowed=2)
    save_state(tmp_path / "2.npz", state)
    found = load_state(tmp_path / "2.npz")
    assert found.windowed == 2 and found.window["w"] == 5
    save_state(tmp_path / "2.npz", replace(state, window={}, windowed=0))
    assert not load_state(tmp_path / "2.npz").window


@pytest.mark.parametrize(
    ("count", "method", "words"),
    [
        (0, 'name = "fedkrso"', "round.average_last: average_last is 0, outside 1 to the run's 6 rounds"),
        (7, 'name = "fedkrso"', "round.average_last: average_last is 7, outside 1 to the run's 6 rounds"),
        (
            2,
            'name = "fedkrso"\nschedule = "fresh"',
            "fedkrso as it is here have no mean: what a round learned is merged",
        ),
        (2, 'name = "flora"', "the last states of flora as it is here have no mean: what a round learned is merged"),
        (2, 'name = "fedsa-lora"', "fedsa-lora as it is here have no mean: nodes have models of their own"),
        (2, 'name = "fedbpt"', "fedbpt as it is here have no mean: each is a search's mean"),
    ],
)
def test_states_without_a_mean_are_refused_by_name(tmp_path: Path, count: int, method: str, words: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(count=count, method=method))
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(path, Job)


@pytest.mark.parametrize(
    "name", ["fedkrso", "fedavg", "fedit", "ffa-lora", "rolora", 'fedkrso"\nrefresh_every = 9\nschedule = "fresh']
)
def test_others_have_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(count=3, method=f'name = "{name}"'))
    assert load_config(path, Job).round.average_last == 3
