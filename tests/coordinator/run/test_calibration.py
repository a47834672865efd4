# SPDX-License-Identifier: Apache-2.0
"""`[calibration]` of a job: asked for where rows are informed, refused where nothing needs it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coordinator.job import Job
from fedcore.config.sections import DataSection
from fedcore.errors import ConfigError


def job(method: dict[str, Any], **sections: Any) -> Job:
    fields = {
        "run": "r",
        "model": {"folder": "m"},
        "task": {"kind": "text-classification", "labels": ["a", "b"]},
        "method": {"name": "fedkrso", **method},
        "broker": {"url": "mqtts://broker:8883"},
        **sections,
    }
    return msgspec.convert(fields, Job)


def test_informed_rows_have_a_text_that_they_are_measured_on() -> None:
    found = job(
        {"projection": "informed"}, calibration={"source": "t.tsv", "text": "sentence", "label": None, "rows": 64}
    ).calibration
    assert found is not None and found.rows == 64
    assert found.data == DataSection(source="t.tsv", text="sentence", label=None)


@pytest.mark.parametrize(
    ("method", "calibration", "match"),
    [
        ({"projection": "informed"}, None, r"^calibration: there is no text to make informed rows from"),
        (
            {"projection": "gaussian"},
            {"source": "t.tsv"},
            r"^calibration: fedkrso as it is here needs no text \(leave it out\)",
        ),
        ({"projection": "informed"}, {"source": "t.tsv", "rows": 0}, r"^calibration\.rows: rows is 0"),
        (
            {"projection": "informed", "schedule": "fresh"},
            {"source": "t.tsv"},
            r"^method\.schedule: informed rows are there once",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    method: dict[str, Any], calibration: dict[str, Any] | None, match: str
) -> None:
    with pytest.raises((ConfigError, msgspec.ValidationError), match=match) as caught:
        job(method, calibration=calibration)
    assert "\n" not in str(caught.value)
