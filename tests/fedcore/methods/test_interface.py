# SPDX-License-Identifier: Apache-2.0
"""What all methods' settings say: learning rates that fall, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from fedcore.config.sections import HeadSection
from fedcore.errors import ConfigError
from fedcore.methods import server_half, settings_by_name
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.round.training import AnyTraining, ScalarTraining

KINDS = {str(kind.__struct_config__.tag): kind for kind in settings_by_name().values()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_both_learning_rates_fall_from_round_to_round(kind: type) -> None:
    half = server_half(kind(learning_rate=0.5, tensor_learning_rate=0.25, learning_rate_decay=0.5))
    rates = [(half.training(t, 7).learning_rate, half.training(t, 7).tensor_learning_rate) for t in (1, 2, 4)]
    assert rates == [(0.5, 0.25), (0.25, 0.125), (0.0625, 0.03125)]


@pytest.mark.parametrize("name", KINDS)
def test_left_out_rates_fall_to_a_third_in_a_run_and_what_is_said_stays(name: str) -> None:
    kind = KINDS[name]
    rates = [server_half(kind().settled(5)).training(t, 7).learning_rate for t in (1, 3, 5)]
    assert rates == pytest.approx([rates[0], rates[0] * 3**-0.5, rates[0] / 3])
    assert kind().settled(1).learning_rate_decay == kind(learning_rate_decay=1.0).settled(5).learning_rate_decay == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate_decay": 1.5}, "learning_rate_decay is 1.5, more than 1"),
        ({"published_bits": 7}, "published_bits is 7, outside 8 to 16"),
        ({"published_bits": 17}, "published_bits is 17, outside 8 to 16"),
        ({"learning_rate_decay": 0.0}, "learning_rate_decay is 0.0, it must be positive"),
        ({"server_step": 5.0}, "server_step is 5.0, more than 4"),
        ({"server_momentum": 0.99}, "server_momentum is 0.99, outside 0 to 0.95"),
        ({"server_momentum": -0.1}, "server_momentum is -0.1, outside 0 to 0.95"),
    ],
)
@pytest.mark.parametrize("kind", [FedKRSOSettings, FedAvgSettings])
def test_factors_outside_their_range_are_refused(kind: type, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**changes)


@pytest.mark.parametrize("name", ["fedkseed", "fedkseed-pro"])
@pytest.mark.parametrize("rate", [2.0**-10, 1e-3, 3e-7])
@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_a_table_of_steps_has_one_unit_however_rates_fall(name: str, rate: float, factor: float) -> None:
    def trainings(**changes: Any) -> list[AnyTraining]:
        half = server_half(KINDS[name](learning_rate=rate, **changes), head=HeadSection(start="ridge", rates=factor))
        return [half.training(t, 7) for t in (2, 3, 10)]

    steady, falling = trainings(), trainings(learning_rate_decay=0.7)
    assert len({one.learning_rate for one in falling}) == 3
    for one in (*steady, *falling):
        assert isinstance(one, ScalarTraining) and one.unit_learning_rate == steady[0].learning_rate
        unit = 2.0**one.unit_exponent
        assert 2.0**-14 <= one.unit_learning_rate / unit <= 2.0**-13
