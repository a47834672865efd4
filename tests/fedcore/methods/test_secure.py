# SPDX-License-Identifier: Apache-2.0
"""What a job with secure aggregation may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.job import EvaluationSection, Job, ModelSection, RoundSection, SafetySection
from fedcore.config.sections import BrokerSection, HeadSection, TaskSection
from fedcore.errors import ConfigError
from fedcore.methods import settings_by_name
from fedcore.methods.beside.secure import SecureSection
from fedcore.methods.fed3r import Fed3RSettings
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.seeded.ferret import FerretSettings
from fedcore.methods.whole.fedavg import FedAvgSettings
from fedcore.round.secure import MOST_WEIGHT

SAFETY = SafetySection(norm_ratio=0, max_share_ratio=0)
ROUND, ONCE = RoundSection(quorum=3, min_nodes=3), RoundSection(quorum=3, min_nodes=3, rounds=1)


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "run": "r",
        "model": ModelSection(folder="m"),
        "task": TaskSection(kind="text-classification", labels=("a", "b")),
        "broker": BrokerSection(url="mqtts://x"),
        "round": ROUND,
        "safety": SAFETY,
        "secure_aggregation": SecureSection(),
    }
    return Job(**{**fields, **changes})


def test_what_sums_alone_can_do_is_taken() -> None:
    for method in (FedKRSOSettings(), FedKRSOSettings(order="uniform"), FedAvgSettings(codec="top-k")):
        assert job(method=method).secure_aggregation == SecureSection()
    job(safety=SafetySection(norm_ratio=0, max_share_ratio=0, norm_bound=1.0, max_examples=10))
    job(head=HeadSection(start="ridge"), secure_aggregation=SecureSection(fraction_bits=20))
    job(method=Fed3RSettings(), round=ONCE)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"safety": SafetySection(norm_ratio=0)}, "safety.max_share_ratio"),
        ({"safety": SafetySection(max_share_ratio=0)}, "safety.norm_ratio"),
        ({"safety": SafetySection(norm_ratio=0, max_share_ratio=0, rule="median")}, "safety.rule"),
        (
            {"safety": SafetySection(norm_ratio=0, max_share_ratio=0, norm_bound=1.0, norm_policy="refuse")},
            "safety.norm_policy",
        ),
        ({"round": RoundSection(quorum=2, min_nodes=2)}, "round.quorum"),
        ({"evaluation": EvaluationSection(where="nodes")}, "evaluation.where"),
        (
            {"head": HeadSection(start="ridge"), "secure_aggregation": SecureSection(fraction_bits=19)},
            "secure_aggregation.fraction_bits",
        ),
        (
            {"method": Fed3RSettings(), "round": ONCE, "secure_aggregation": SecureSection(fraction_bits=16)},
            "secure_aggregation.fraction_bits",
        ),
        ({"method": Fed3RSettings(), "round": RoundSection(quorum=3, min_nodes=3, rounds=2)}, "round.rounds"),
        ({"method": FerretSettings()}, "method.name"),
        ({"method": FedKRSOSettings(moments="averaged")}, "method.name"),
        ({"method": FedKRSOSettings(moments="rows")}, "method.name"),
    ],
)
def test_what_needs_somebody_s_update_is_refused_by_name(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as refused:
        job(**changes)
    assert refused.value.place == place and refused.value.remedy


def test_every_other_method_is_refused() -> None:
    names = {settings.__struct_config__.tag for settings in settings_by_name().values() if settings().sums_alone}
    assert names == {"fedkrso", "fedavg", "fed3r"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("threshold", 0.4), ("threshold", 1.0), ("fraction_bits", 33), ("neighbours", -1), ("wait_seconds", 0.0)],
)
def test_keys_beyond_their_limits(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        SecureSection(**{key: value})
    assert refused.value.place == f"secure_aggregation.{key}"


def test_the_weights_of_all_nodes_together_are_within_what_exact_sums_allow() -> None:
    for nodes in (3, 100, 7000):
        asked = SecureSection().asked(nodes, 0.0, 0, "examples")
        assert nodes * asked.most_examples <= MOST_WEIGHT
