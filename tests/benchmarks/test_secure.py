# SPDX-License-Identifier: Apache-2.0
"""The script that measures secure aggregation runs the whole exchange."""

from __future__ import annotations

from benchmarks.secure.cost import exchanged


def test_a_small_round_is_measured() -> None:
    costs, exchange = exchanged(5, 1)
    assert exchange.result is not None and len(exchange.near[0]) == 4
    assert len(exchange.result.mask_keys) == 1 and len(exchange.survivors) == 4
    # Keys with their signatures, and four boxes; then four echoes and reveals of five shares.
    assert 5 * 1200 < costs.up < 5 * 2500 and costs.node_seconds > 0 and costs.led_seconds > 0
