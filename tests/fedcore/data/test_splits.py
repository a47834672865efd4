# SPDX-License-Identifier: Apache-2.0
"""What of splits the command line of a simulation adds; the draws themselves are tested with the experiment."""

from __future__ import annotations

import pytest

from fedcore.data.splits import Split, deal, parse_split
from fedcore.errors import ConfigError


@pytest.mark.parametrize("text", ["iid", "dirichlet:0.5", "by:speaker", "by:who: exactly"])
def test_a_split_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_split(text)) == text


@pytest.mark.parametrize("text", ["", "natural", "by:", "by", "dirichlet:0"])
def test_what_is_no_split_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a split") as refused:
        parse_split(text)
    assert "by:COLUMN" in refused.value.one_line()


def test_a_split_by_a_column_leaves_its_groups_whole() -> None:
    speakers = [*"aaabbbcccd"]
    parts = deal(speakers, 2, parse_split("by:speaker"), 0)
    owners = [{speakers[index] for index in part} for part in parts]
    assert not owners[0] & owners[1] and parts == deal(speakers, 2, Split("natural"), 0)
