# SPDX-License-Identifier: Apache-2.0
"""Addresses of HTTP from elsewhere, taken apart as whoever connects will take them."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcore.errors import ConfigError
from fedcore.web.origins import Origin, origin_of, split_address


@pytest.mark.parametrize(
    ("address", "origin", "target"),
    [
        ("https://S3.Example.org", Origin("https", "s3.example.org", 443), "/"),
        ("https://s3.example.org:443/a/b?c=d", Origin("https", "s3.example.org", 443), "/a/b?c=d"),
        ("http://10.0.0.7:8333/a", Origin("http", "10.0.0.7", 8333), "/a"),
        ("http://[fe80::1]:8333/a", Origin("http", "fe80::1", 8333), "/a"),
        ("http://localhost/a", Origin("http", "localhost", 80), "/a"),
    ],
)
def test_an_address_has_one_origin(address: str, origin: Origin, target: str) -> None:
    assert split_address(address) == (origin, target)
    assert split_address(str(origin) + target) == (origin, target)


@given(st.text(alphabet=st.sampled_from("htps:/@[].?#a1%\\ -_\t\n"), max_size=40).map(lambda text: f"https://{text}"))
def test_whatever_is_taken_is_one_line_and_names_one_host(address: str) -> None:
    try:
        origin, target = split_address(address)
    except ValueError:
        return
    assert origin.host == urlsplit(address).hostname and 1 <= origin.port <= 65_535
    assert target.startswith("/") and not set(target) & set(" \t\r\n#\\") and "@" not in address.split("/")[2]


@pytest.mark.parametrize("wrong", ["https://a/b", "http://example.org", "ftp://a", "https://", "https://a:0", "a"])
def test_a_server_that_a_file_names_is_a_server_alone(wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        origin_of(wrong, "objects.origins")
    assert caught.value.place == "objects.origins"
