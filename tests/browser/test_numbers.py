# SPDX-License-Identifier: Apache-2.0
"""How the page writes numbers: units, steps and what is unknown. Its modules are plain functions, called in the
browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MIB = 2**20


def test_numbers_as_words(open_page: Callable[..., Any]) -> None:
    tab, _ = open_page()
    cases: dict[str, list[tuple[list[Any], str]]] = {
        "memory": [
            ([512], "512 B"),
            ([1.5 * MIB], "1.50 MiB"),
            ([640 * MIB], "640 MiB"),
            ([2**30], "1 GiB"),
            ([None], "–"),
        ],
        "memoryOf": [
            ([412 * MIB, 640 * MIB], "412 / 640 MiB"),
            ([300 * MIB, 2**31], "0.29 / 2 GiB"),
            ([MIB, 0], "1 MiB"),
            ([None, 1], "–"),
        ],
        "traffic": [([0], "0 B"), ([7.5e6], "7.50 MB"), ([31.42e9], "31.4 GB")],
        "onAxis": [(["7.50 MB"], "7.5 MB"), (["100 MiB"], "100 MiB"), (["2.00 GiB"], "2 GiB")],
        "percent": [([0.8414], "84.1 %"), ([0.94, 0], "94 %"), ([None], "–")],
        "loss": [([0.54821], "0.548"), ([12.345], "12.35"), ([None], "–")],
        "celsius": [([84.6], "85 °C"), ([None], "–")],
        "watts": [([7.94], "7.9 W"), ([142.4], "142 W")],
        "duration": [
            ([0.2], "0 s"),
            ([61], "1 min 1 s"),
            ([600], "10 min"),
            ([7300], "2 h 1 min"),
            ([200_000], "2 d"),
            ([-5], "0 s"),
        ],
        "ago": [([2], "just now"), ([59], "55 s ago"), ([61], "1 min ago"), ([7300], "2 h ago"), ([None], "–")],
        "count": [([1, "node"], "1 node"), ([0, "node"], "0 nodes")],
    }
    calls = [[name, given] for name, rows in cases.items() for given, _ in rows]
    script = "async (calls) => { const f = await import('/static/js/format.js'); return calls.map(([name, given]) => f[name](...given)); }"
    assert tab.page.evaluate(script, calls) == [wanted for rows in cases.values() for _, wanted in rows]


def test_what_needs_attention_and_what_does_not(open_page: Callable[..., Any]) -> None:
    tab, server = open_page()
    script = """async (name) => {
        const derive = await import('/static/js/derive.js');
        const run = await (await fetch('/api/run')).json();
        return derive.attention(run.nodes[name], run).map((note) => note.key + ' ' + note.text);
    }"""

    def notes(name: str) -> list[str]:
        found: list[str] = tab.page.evaluate(script, name)
        return found

    node = server.view.nodes["attic-01"]
    assert notes("attic-01") == []
    node.worker_bytes = int(0.9 * node.budget_bytes) - node.agent_rss_bytes
    server.show()
    assert notes("attic-01") == []
    node.worker_bytes, node.reason, node.trouble = node.budget_bytes, "no room", "version 6 is another"
    server.show()
    assert notes("attic-01") == ["bad version 6 is another", "bad 100 % of the budget", "warn no room"]
    server.view.excluded = ("attic-01",)
    server.show()
    assert notes("attic-01") == []
    assert notes("garage-01") == ["bad offline"] and notes("office-02") == ["warn throttled: too hot"]
    server.view.phase = "finished"
    server.show()
    assert notes("garage-01") == []
