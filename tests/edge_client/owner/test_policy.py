# SPDX-License-Identifier: Apache-2.0
"""When a node may work: every rule with its reason, what cannot be read, and readings that flicker around a limit."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.node import Node
from edge_client.owner.policy import Conditions, PolicySection, Watch, objection, parse_hours
from fedcore.config.reading import load_config
from fedcore.device.readings import Readings
from fedcore.errors import ConfigError

MONDAY = datetime(2026, 5, 4)
NODE = 'node = "n"\nrun = "t"\nmodel_folder = "m"\n[data]\nsource = "d.csv"\n[broker]\nurl = "mqtts://b"\n'


def at(day: int, clock: str) -> datetime:
    """Day 0 is a Monday."""
    hours, minutes = clock.split(":")
    return MONDAY + timedelta(days=day, hours=int(hours), minutes=int(minutes))


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-17:30", ["0 08:00", "6 17:29"], ["0 07:59", "0 17:30", "3 00:00"]),
        ("22:00-06:00", ["0 22:00", "0 23:59", "0 00:00", "6 05:59"], ["0 06:00", "0 21:59"]),
        ("00:00-24:00", ["0 00:00", "2 12:00", "6 23:59"], []),
        # Of the day on which it begins: Friday's night ends on Saturday morning, Sunday's on Monday's.
        ("fri 22:00-6:00", ["4 22:00", "5 05:59"], ["4 05:59", "5 22:00", "6 00:00"]),
        ("Mon-Fri 20:00-07:00", ["0 20:00", "5 06:59", "1 00:00"], ["0 06:59", "6 02:00", "5 20:00"]),
        ("fri-mon 10:00-11:00", ["4 10:00", "5 10:30", "6 10:30", "0 10:30"], ["1 10:30", "3 10:30"]),
        (
            "mon-fri 22:00-06:00, sat-sun 00:00-24:00",
            ["0 23:00", "5 12:00", "6 23:59", "1 03:00"],
            ["0 12:00", "0 00:30"],
        ),
        ("12:00-13:00,18:00-00:00", ["0 12:30", "0 18:00", "0 23:59"], ["0 13:00", "1 00:00", "0 17:59"]),
    ],
)
def test_hours(hours: str, inside: list[str], outside: list[str]) -> None:
    policy = PolicySection(hours=hours)
    for moments, expected in ((inside, None), (outside, f"policy: outside hours = {hours}")):
        for moment in moments:
            day, clock = moment.split()
            found = objection(policy, Conditions(at(int(day), clock)))
            assert (found.reason if found else None) == expected, moment


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("22-6", r"policy\.hours: '22-6' are no hours \(write hours = \"22:00-06:00\""),
        ("25:00-06:00", r"25:00 is no time of the day"),
        ("24:30-06:00", r"24:30 is no time of the day"),
        ("08:61-09:00", r"08:61 is no time of the day"),
        ("08:00-08:00", r"'08:00-08:00' is no time at all \(the whole day is \"00:00-24:00\""),
        ("24:00-06:00", r"is no time at all"),
        ("mo 08:00-09:00", r"are no hours"),
        ("mit-fri 08:00-09:00", r"'mit' is no day \(days are mon, tue, wed, thu, fri, sat, sun\)"),
        ("22:00-06:00,", r"'' are no hours"),
        ("x" * 10_000, r"are no hours"),
    ],
)
def test_hours_that_are_none_are_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_hours(text)


def test_a_clock_that_was_never_set_is_no_hour() -> None:
    found = objection(PolicySection(hours="00:00-24:00"), Conditions(datetime(1970, 1, 1, 0, 5)))
    assert found and found.reason.startswith("policy: the clock says 1970-01-01, so nobody knows")


HOT = PolicySection(max_temperature_celsius=75)


@pytest.mark.parametrize(
    ("policy", "readings", "others", "reason"),
    [
        (PolicySection(), None, None, None),
        (PolicySection(mains_only=True), Readings(on_mains=True), None, None),
        (
            PolicySection(mains_only=True),
            Readings(on_mains=False, battery_percent=41.6),
            None,
            "on battery (42 %), and mains_only is set",
        ),
        (PolicySection(mains_only=True), Readings(on_mains=False), None, "on battery, and mains_only is set"),
        (
            PolicySection(mains_only=True),
            Readings(),
            None,
            "mains_only is set, and this device does not tell whether it is on the mains",
        ),
        (
            PolicySection(mains_only=True),
            None,
            None,
            "mains_only is set, and this device does not tell whether it is on the mains",
        ),
        (HOT, Readings(temperatures_celsius={"cpu": 75.0, "gpu": 40.0}), None, None),
        (
            HOT,
            Readings(temperatures_celsius={"cpu": 60.0, "gpu": 81.25}),
            None,
            "gpu at 81.2 C, and max_temperature_celsius = 75",
        ),
        (HOT, Readings(), None, "max_temperature_celsius = 75 is set, and this device does not tell any temperature"),
        (PolicySection(idle_only=True), None, 19.9, None),
        (PolicySection(idle_only=True), None, 63.4, "other programs use 63 % of the processors, and idle_percent = 20"),
        (PolicySection(idle_only=True, idle_percent=70), None, 63.4, None),
        (
            PolicySection(idle_only=True),
            None,
            None,
            "idle_only is set, and this device does not tell how busy its processors are",
        ),
        # Only what is asked for counts.
        (PolicySection(hours="00:00-24:00"), Readings(on_mains=False, temperatures_celsius={"cpu": 99.0}), 99.0, None),
    ],
)
def test_reasons(policy: PolicySection, readings: Readings | None, others: float | None, reason: str | None) -> None:
    found = objection(policy, Conditions(MONDAY, readings, others))
    assert (found.reason if found else None) == (None if reason is None else f"policy: {reason}")


def test_limits_are_lower_by_a_margin_while_a_node_rests() -> None:
    policy = PolicySection(max_temperature_celsius=75, idle_only=True, idle_percent=20)
    for celsius, others, allowed in ((70.0, 15.0, True), (70.5, 15.0, False), (70.0, 15.5, False)):
        conditions = Conditions(MONDAY, Readings(temperatures_celsius={"cpu": celsius}), others)
        assert objection(policy, conditions) is None
        assert (objection(policy, conditions, resting=True) is None) == allowed


def degrees(celsius: float | None) -> Conditions:
    return Conditions(MONDAY, Readings(temperatures_celsius={} if celsius is None else {"cpu": celsius}))


def test_the_first_judgement_counts_at_once() -> None:
    assert Watch(HOT).take(degrees(80), 0.0) == "policy: cpu at 80.0 C, and max_temperature_celsius = 75"
    assert Watch(HOT).take(degrees(75), 0.0) is None


def test_a_reading_that_flickers_around_its_limit_ends_no_work_and_begins_none() -> None:
    watch = Watch(HOT)
    assert all(watch.take(degrees(80 if second % 9 else 74), float(second)) is None for second in range(600))
    reason = next(
        found for second in range(600, 620) if (found := watch.take(degrees(78.0 + second - 600), float(second)))
    )
    # Ten seconds above, from 595 on. The words are those of the moment in which work ended: numbers alone are no news.
    assert reason == "policy: cpu at 83.0 C, and max_temperature_celsius = 75"
    assert all(watch.take(degrees(69 if second % 59 else 71), float(second)) == reason for second in range(700, 1300))
    settling = [(71.0, 1399.0), (70.0, 1400.0), (70.0, 1459.0), (70.0, 1460.0)]
    assert [watch.take(degrees(celsius), second) for celsius, second in settling] == [reason, reason, reason, None]


def test_a_sensor_that_falls_silent_for_a_moment_ends_no_work_and_for_longer_does() -> None:
    watch = Watch(HOT)
    assert [watch.take(degrees(None if second in (3, 4, 5) else 60), float(second)) for second in range(10)] == [
        None
    ] * 10
    silent = [watch.take(degrees(None), float(second)) for second in range(10, 22)]
    assert silent[:10] == [None] * 10
    assert silent[-1] == "policy: max_temperature_celsius = 75 is set, and this device does not tell any temperature"


def test_another_policy_ends_work_only_if_what_it_objects_to_lasts() -> None:
    watch = Watch(PolicySection(idle_only=True), working=True)
    # How busy others are is not known yet.
    assert watch.take(Conditions(MONDAY), 0.0) is None
    assert watch.take(Conditions(MONDAY, None, 5.0), 2.0) is None
    assert (
        watch.take(Conditions(MONDAY, None, 95.0), 3.0) is None
        and watch.take(Conditions(MONDAY, None, 95.0), 13.0) is not None
    )


def test_hours_begin_and_end_on_the_minute() -> None:
    watch = Watch(PolicySection(hours="22:00-06:00"))
    told = [
        watch.take(Conditions(at(0, clock)), second) is None
        for second, clock in enumerate(("21:59", "22:00", "05:59", "06:00"))
    ]
    assert told == [False, True, True, False]


def test_another_rule_that_objects_takes_over_the_reason() -> None:
    watch = Watch(PolicySection(hours="22:00-06:00", max_temperature_celsius=75))
    hot, cool = ({"cpu": celsius} for celsius in (90.0, 60.0))
    assert (
        watch.take(Conditions(at(0, "21:00"), Readings(temperatures_celsius=hot)), 0.0)
        == "policy: outside hours = 22:00-06:00"
    )
    taken_over = watch.take(Conditions(at(0, "22:00"), Readings(temperatures_celsius=hot)), 3600.0)
    assert taken_over == "policy: cpu at 90.0 C, and max_temperature_celsius = 75"
    assert watch.take(Conditions(at(0, "22:10"), Readings(temperatures_celsius=cool)), 4200.0) == taken_over
    assert watch.take(Conditions(at(0, "22:11"), Readings(temperatures_celsius=cool)), 4260.0) is None


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    samples=st.lists(
        st.tuples(st.sampled_from([0.5, 1.0, 5.0, 20.0]), st.sampled_from([60.0, 72.0, 80.0, None])),
        min_size=2,
        max_size=80,
    ),
    patience=st.sampled_from([0.0, 3.0, 10.0]),
    settle=st.sampled_from([0.0, 5.0, 60.0]),
)
def test_whatever_a_sensor_says_nothing_changes_faster_than_the_owner_allows(
    samples: list[tuple[float, float | None]], patience: float, settle: float
) -> None:
    watch, now = Watch(PolicySection(max_temperature_celsius=75, patience_seconds=patience, settle_seconds=settle)), 0.0
    changes: list[tuple[float, bool]] = []
    for later, celsius in samples:
        now += later
        rests = watch.take(degrees(celsius), now) is not None
        if not changes or rests != changes[-1][1]:
            changes.append((now, rests))
    for (before, _), (after, rests) in pairwise(changes):
        assert after - before >= (patience if rests else settle)


def test_the_section_is_off_by_default_and_read_from_the_node_file(tmp_path: Path) -> None:
    path = tmp_path / "n.toml"
    path.write_text(NODE)
    assert load_config(path, Node).policy == PolicySection() and not PolicySection().asks
    path.write_text(
        f'{NODE}[policy]\nmains_only = true\nmax_temperature_celsius = 75\nidle_only = true\nhours = "22:00-06:00"\n'
    )
    policy = load_config(path, Node).policy
    assert policy.asks and msgspec.structs.asdict(policy) == {
        "mains_only": True,
        "max_temperature_celsius": 75,
        "idle_only": True,
        "idle_percent": 20.0,
        "hours": "22:00-06:00",
        "patience_seconds": 10.0,
        "settle_seconds": 60.0,
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('hours = "22-6"', "n.toml: policy.hours: '22-6' are no hours (write hours ="),
        (
            "max_temperature_celsius = 750",
            "n.toml: policy.max_temperature_celsius: 750 is outside 30 to 110 (write a temperature in",
        ),
        (
            "idle_percent = 0",
            "n.toml: policy.idle_percent: 0 is outside 1 to 100 (write a share of all processors, such as 20)",
        ),
        ("settle_seconds = -1", "n.toml: policy.settle_seconds: -1 is outside 0 to 3600 (write seconds, such as 60)"),
        ("main_only = true", "n.toml: policy: unknown key 'main_only' (did you mean 'mains_only'?)"),
        ('mains_only = "yes"', "n.toml: policy.mains_only: true or false is needed, and this is text"),
    ],
)
def test_mistakes_are_one_line_with_place_and_remedy(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "n.toml"
    path.write_text(f"{NODE}[policy]\n{line}\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(path, Node)
