# SPDX-License-Identifier: Apache-2.0
"""What all methods' settings say: learning rates that fall, and what is refused."""

from __future__ import annotations

import pytest

from fedcore.errors import ConfigError
from fedcore.methods import server_half, settings_by_name
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.whole.fedavg import FedAvgSettings

KINDS = {str(kind.__struct_config__.tag): kind for kind in settings_by_name().values()}
CONSTANT = ("fedkseed", "fedkseed-pro")


@pytest.mark.parametrize(
    "kind",
    [kind for name, kind in KINDS.items() if name not in CONSTANT],
    ids=[name for name in KINDS if name not in CONSTANT],
)
def test_both_learning_rates_fall_from_round_to_round(kind: type) -> None:
    half = server_half(kind(learning_rate=0.5, tensor_learning_rate=0.25, learning_rate_decay=0.5))
    rates = [(half.training(t, 7).learning_rate, half.training(t, 7).tensor_learning_rate) for t in (1, 2, 4)]
    assert rates == [(0.5, 0.25), (0.25, 0.125), (0.0625, 0.03125)]


@pytest.mark.parametrize("name", KINDS)
def test_left_out_rates_fall_to_a_third_in_a_run_and_what_is_said_stays(name: str) -> None:
    kind = KINDS[name]
    rates = [server_half(kind().settled(5)).training(t, 7).learning_rate for t in (1, 3, 5)]
    falls = name not in CONSTANT
    assert rates == pytest.approx([rates[0], rates[0] * (3**-0.5 if falls else 1), rates[0] / (3 if falls else 1)])
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


@pytest.mark.parametrize("name", CONSTANT)
def test_where_coefficients_are_in_units_of_the_learning_rate_it_stays(name: str) -> None:
    half = server_half(KINDS[name]())
    assert half.training(1, 7).learning_rate == half.training(9, 7).learning_rate
    with pytest.raises(ConfigError, match="units of the learning rate"):
        KINDS[name](learning_rate_decay=0.9)
