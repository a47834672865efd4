# SPDX-License-Identifier: Apache-2.0
"""Which jobs can have buffered rounds, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.job import EvaluationSection, Job, ModelSection, RoundSection
from fedcore.config.privacy import NodePrivacy, PrivacySection
from fedcore.config.safety import SafetySection
from fedcore.config.sections import BrokerSection, HeadSection, TaskSection
from fedcore.errors import ConfigError
from fedcore.methods import settings_by_name
from fedcore.methods.beside.secure import SecureSection
from fedcore.methods.fedkrso import FedKRSOSettings
from fedcore.methods.interface import MethodSettings
from fedcore.methods.whole.fedavg import FedAvgSettings

ABLE = (
    FedKRSOSettings(),
    FedKRSOSettings(moments="carried", order="uniform", server_momentum=0.5),
    FedAvgSettings(codec="top-k"),
)


def buffered(size: int) -> RoundSection:
    return RoundSection(kind="buffered", buffer_size=size, max_staleness=4, min_nodes=size, quorum=size)


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "run": "t",
        "model": ModelSection(folder="m"),
        "task": TaskSection(kind="text-classification", labels=("a", "b")),
        "broker": BrokerSection(url="mqtts://x"),
        "round": buffered(2),
    }
    return Job(**{**fields, **changes})


@pytest.mark.parametrize("method", ABLE, ids=lambda method: method.described())
def test_methods_whose_changes_can_be_added_to_any_version_take_part(method: MethodSettings) -> None:
    taken = job(method=method)
    assert (taken.staleness.most, taken.staleness.factor, taken.staleness.first) == (4, "sqrt", 1)
    assert job(method=method, head=HeadSection(start="ridge")).staleness.first == 2, "the head's round waits for all"
    assert job(round=RoundSection()).staleness.most == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"method": FedKRSOSettings(schedule="fresh")},
            'round.kind: rounds of fedkrso as it is here cannot be buffered: with schedule = "fresh" seeds change',
        ),
        (
            {"method": FedKRSOSettings(moments="averaged")},
            'round.kind: rounds of fedkrso as it is here cannot be buffered: moments = "averaged" are no changes',
        ),
        (
            {"safety": SafetySection(rule="krum"), "round": buffered(9)},
            "safety.rule: 'krum' compares updates that began from one state",
        ),
        (
            {"privacy": PrivacySection(node=NodePrivacy(clip=0.2, delta=1e-4, noise_multiplier=1.0))},
            "privacy: what noise is worth",
        ),
        ({"evaluation": EvaluationSection(where="nodes")}, "evaluation.where: nodes measure the state that a round"),
        (
            {
                "secure_aggregation": SecureSection(),
                "safety": SafetySection(norm_ratio=0, max_share_ratio=0),
                "round": buffered(3),
                "head": HeadSection(start="random"),
            },
            "secure_aggregation: masks cancel in the sum of a cohort",
        ),
    ],
)
def test_what_needs_a_round_of_one_state_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        job(**changes)
    assert str(refused.value).startswith(words)


def test_every_other_method_says_why_not() -> None:
    names = {settings.__struct_config__.tag for settings in settings_by_name().values() if not settings().not_buffered}
    assert names == {settings.name for settings in ABLE}
