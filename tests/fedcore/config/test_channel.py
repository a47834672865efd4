# SPDX-License-Identifier: Apache-2.0
"""`[channel]` of a job: read as meant, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.job import Job
from fedcore.config.channel import ChannelSection
from fedcore.config.reading import load_config
from fedcore.errors import ConfigError

JOB = """run = "r"
[model]
folder = "m"
[task]
kind = "text-classification"
labels = ["a", "b"]
[broker]
url = "mqtts://h"
[channel]
"""


def read(folder: Path, keys: str) -> Job:
    path = folder / "job.toml"
    path.write_text(JOB + keys)
    return load_config(path, Job)


def test_a_job_has_a_scenario_or_an_error_or_no_channel(tmp_path: Path) -> None:
    scenario = read(tmp_path, 'scenario = "protected"\nusers = 5\njammer = "focused"\n')
    assert scenario.channel == ChannelSection(scenario="protected", users=5, jammer="focused")
    assert read(tmp_path, "error = 0.5\n").channel == ChannelSection(error=0.5)
    (tmp_path / "none.toml").write_text(JOB.replace("[channel]\n", ""))
    assert load_config(tmp_path / "none.toml", Job).channel is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("", "channel: nothing says how large the error is (write scenario = "),
        ('scenario = "jammed"\nerror = 0.1\n', "channel: a scenario says how large the error is (keep one of"),
        ('scenario = "loud"\n', "channel.scenario: invalid value 'loud' (one of undisturbed, jammed, protected)"),
        ("error = 0.0\n", "channel.error: error is 0, it must be above 0"),
        ("error = 1e7\n", "channel.error: error is 1e+07, it must be above 0 and up to 1,000,000"),
        ("error = 0.1\nusers = 4\n", "channel.users: users is of a simulated channel (leave it out, or"),
        ('scenario = "jammed"\nusers = 17\n', "channel.users: users is 17, it must be 1 to 16"),
        ('scenario = "jammed"\njammer_db = 61.0\n', "channel.jammer_db: jammer_db is 61, it must be from -60 to 60"),
        ('scenario = "jammed"\nwhen = "always"\n', "channel: unknown key 'when'"),
        (
            "error = 0.1\n[privacy.example]\nclip = 1.0\ndelta = 1e-5\nnoise_multiplier = 1.0\nleast_examples = 100\n",
            "channel: an example's noise depends on which others are in its batch, and that would tell of them",
        ),
    ],
)
def test_what_it_cannot_mean_is_refused_with_the_remedy(tmp_path: Path, keys: str, words: str) -> None:
    with pytest.raises(ConfigError) as found:
        read(tmp_path, keys)
    assert words in found.value.one_line()
