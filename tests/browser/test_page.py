# SPDX-License-Identifier: Apache-2.0
"""The page as an operator uses it: what it shows, that it stays live, and that strangers' words stay words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from coordinator.store.rows import NodeScore, NodesMeasured
from coordinator.store.view import EventView, RunView
from fedcore.device.readings import Readings
from tests.browser import fleet
from tests.browser.pageserver import PageServer

Opener = Callable[..., Any]
ATTACK = "<img src=x onerror='window.attacked=1'><script>window.attacked=1</script>"


def test_a_run_at_a_glance(open_page: Opener) -> None:
    tab, _ = open_page()
    tiles = dict(tuple(text.split("\n")[:2]) for text in tab.page.locator(".tile").all_inner_texts())
    assert tiles["Round"] == "7 of 12" and tiles["Updates"] == "8 of 23" and tiles["Nodes online"] == "23 of 24"
    assert (
        tiles["Accuracy"] == "86.6 %"
        and tiles["Loss, held-out"] == "0.560"
        and tiles["Model digest"] == fleet.DIGEST[:12]
    )
    assert tab.page.title() == "7/12 round open · voice-intents"
    row = [text.strip() for text in tab.row("office-01").inner_text().split("\n")]
    assert row[:2] == ["office-01", "Raspberry Pi 5 Model B Rev 1.0"] and "version 6" in row and "digest same" in row
    assert any(text.endswith(" / 1.50 GiB") for text in row) and "just now" in row
    assert tab.page.locator(".chart canvas").count() == 3
    assert "best 86.6 % after round 5" in tab.page.locator(".plot").first.get_attribute("aria-label")
    assert tab.page.locator(".events li").count() == 6


def test_what_nodes_measured_is_shown_with_its_spread(open_page: Opener) -> None:
    view = fleet.run(4, done=3)
    names = sorted(view.nodes)
    for index, row in enumerate(view.rows):
        scores = {name: NodeScore(10, (70 + row.round + 5 * place) / 100, 1.0) for place, name in enumerate(names)}
        mean = sum(score.accuracy for score in scores.values()) / len(scores)
        found = NodesMeasured(10 * len(names), mean, 0.9 - row.round / 10, {}, scores)
        view.rows[index] = msgspec.structs.replace(row, nodes=found, accuracy=None, loss=None)
    view.phases = {3: "polish", view.round: "head"}
    tab, _ = open_page(view)
    tiles = dict(tuple(text.split("\n")[:2]) for text in tab.page.locator(".tile").all_inner_texts())
    assert tiles["Round"] == f"{view.round} (head) of {view.total_rounds}"
    assert tiles["Accuracy"] == "80.5 %" and tiles["Loss, held-out"] == "0.600"
    assert "on 40 rows of 4 nodes, round 3" in tab.page.locator(".tiles").inner_text()
    tab.page.get_by_role("button", name="Show as a table").click()
    head = tab.page.locator("#rounds-table thead th").all_inner_texts()
    cells = tab.page.locator("#rounds-table tbody tr").first.locator("th, td").all_inner_texts()
    last = {label.lower(): cell for label, cell in zip(head, cells, strict=True)}
    assert (last["round"], last["on nodes"], last["loss on nodes"]) == (
        "3 (polish)",
        "80.5 %",
        "0.600",
    )
    assert (last["least to largest"], last["worst node"]) == ("73.0 % to 88.0 %", names[0])
    said = [plot.get_attribute("aria-label") or "" for plot in tab.page.locator(".plot").all()]
    assert "on the nodes' own rows 80.5 % at the last measurement" in said[0] and "worst node at 73.0 %" in said[0]
    assert "nodes' rows 0.800 at first, 0.600 now" in said[1]


def test_rows_change_in_place_and_rounds_are_announced(open_page: Opener) -> None:
    tab, server = open_page()
    tab.page.evaluate(
        """() => {
            window.kept = document.querySelector('.nodes tbody tr');
            window.changed = new Set();
            new MutationObserver((records) => {
                for (const { target } of records) window.changed.add((target.closest ? target :
                target.parentElement).closest('tr'));
            }).observe(document.querySelector('.nodes tbody'), { subtree: true, childList: true, characterData: true,
            attributes: true });
        }"""
    )
    node = server.view.nodes["attic-01"]
    node.state, node.step, node.steps = "training", 59, 60
    server.show()
    tab.until("document.querySelector('.nodes tbody tr').innerText.includes('step 59 of 60')")
    assert tab.page.evaluate("window.kept === document.querySelector('.nodes tbody tr') && window.changed.size") == 1

    view = server.view
    view.rows = fleet.rounds(7, sorted(view.nodes))
    view.round, view.accepted = 8, ()
    server.show()
    tab.until(
        "document.getElementById('announcer').textContent.startsWith('Round 8 of 12 is open for 23 nodes; accuracy after round 7')"
    )
    view.phase = "finished"
    server.show()
    tab.until("document.getElementById('announcer').textContent.startsWith('The run is finished')")
    tab.until("document.querySelector('.pill').innerText === '8/12 · finished'")


def test_rows_are_sorted_filtered_and_remembered_in_the_address(open_page: Opener) -> None:
    tab, _ = open_page()
    assert tab.names() == sorted(tab.names())
    tab.page.get_by_role("button", name="Memory").click()
    shares = [
        int(value)
        for value in tab.page.locator(".nodes tbody [role=meter]").evaluate_all("all => all.map(m => m.ariaValueNow)")
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] == 94
    assert tab.page.locator("th[aria-sort]").all_inner_texts() == ["Memory"]
    assert tab.page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    tab.page.get_by_role("button", name="Need attention 5").click()
    assert set(tab.names()) == {"garage-01", "porch-01", "kitchen-02", "office-02", "attic-02"}
    tab.page.get_by_role("searchbox").fill("raspberry full")
    assert tab.names() == ["attic-02"]
    assert tab.page.url.endswith("/#sort=memory&dir=desc&show=attention&q=raspberry+full")
    tab.page.reload()
    tab.page.wait_for_selector(".nodes tbody tr")
    assert tab.names() == ["attic-02"] and tab.page.get_by_role("searchbox").input_value() == "raspberry full"
    tab.page.get_by_role("searchbox").fill("no such thing")
    assert tab.names() == [] and tab.page.get_by_text("No node is like that.").is_visible()
    tab.page.get_by_role("link", name="porch-01").click()
    tab.page.go_back()
    tab.until("document.querySelector('#filter').value === 'no such thing'")


def test_rows_sorted_by_what_changes_all_the_time_keep_their_places_for_a_while(open_page: Opener) -> None:
    tab, server = open_page(path="/#sort=memory&dir=desc", clock=True)
    before = tab.names()
    for index, node in enumerate(server.view.nodes.values()):
        node.worker_bytes = 100 * fleet.MIB + index * fleet.MIB
    server.show()
    tab.until("!document.querySelector('.nodes tbody [data-level=warn]')")
    assert tab.names() == before
    tab.page.clock.fast_forward(5_000)
    server.show()
    tab.until(f"document.querySelector('.nodes tbody a').textContent !== {before[0]!r}")


def test_a_node_and_its_memory_over_time(open_page: Opener) -> None:
    tab, server = open_page(path="/nodes/porch-01")
    assert (
        tab.page.title() == "porch-01 · voice-intents"
        and tab.page.get_by_role("heading", level=1).inner_text() == "porch-01"
    )
    tab.page.wait_for_selector(".node-memory canvas")
    assert tab.page.locator(".notes li").all_inner_texts() == [server.view.nodes["porch-01"].trouble]
    sentence = tab.page.locator(".node-memory .plot").get_attribute("aria-label")
    assert sentence.startswith("Memory over time: now agent 3") and "budget 2.50 GiB." in sentence
    components = dict(text.split("\n") for text in tab.page.locator(".parts > div").all_inner_texts())
    assert list(components)[:2] == ["runtime base", "layer weights"] and len(components) == 10
    facts = dict(text.split("\n", 1) for text in tab.page.locator(".facts > div:not([hidden])").all_inner_texts())
    assert facts["Device"] == "NVIDIA Jetson Orin Nano Developer Kit" and facts["Held by"] == "cgroup v2: memory.max"
    assert "Battery" not in facts
    tab.page.get_by_role("button", name="Show as a table").click()
    assert tab.page.locator("#history-table tbody tr").count() == 240
    assert tab.page.locator(".events li").count() == 1
    plot = tab.page.locator(".node-memory .u-over").bounding_box()
    tab.page.mouse.move(plot["x"] + plot["width"] / 4, plot["y"] + 20)
    assert tab.page.locator(".node-memory .chart-at").inner_text().count(":") == 2


def test_a_node_that_nobody_knows_and_a_history_that_cannot_be_had(open_page: Opener) -> None:
    tab, server = open_page(path="/nodes/nobody", clock=True)
    assert tab.page.get_by_text("No node of this name has spoken in this run.").is_visible()
    node = fleet.node(0, "nobody", 6)
    answer = server.history

    def none_yet(_: Any) -> dict[str, list[Any]]:
        return {key: [] for key in fleet.HISTORY}

    server.history = none_yet
    server.view.nodes["nobody"] = node
    server.show()
    tab.page.get_by_text("No measurement has come yet.").wait_for()
    server.history = answer
    node.last_seen_at = fleet.NOW + 3
    tab.page.clock.fast_forward(2_000)
    server.show()
    tab.page.wait_for_selector(".node-memory canvas")


def test_words_of_strangers_stay_words(open_page: Opener) -> None:
    view = fleet.run(24)
    node = view.nodes["attic-01"]
    node.reason = node.device = node.state = node.route = node.software = node.memory_group = node.security = (
        node.trouble
    ) = ATTACK
    node.readings = Readings(
        power_mode=ATTACK, throttled=True, throttle_reason=ATTACK, temperatures_celsius={ATTACK[:40]: 50.0}
    )
    view.nodes["../" + ATTACK] = fleet.node(3, "../" + ATTACK, 6)
    view.run = view.method = view.security = ATTACK
    view.events = [
        EventView(fleet.NOW, ATTACK, "attic-01", 3, ATTACK),
        EventView(fleet.NOW, "refused", "../" + ATTACK, 3, "x"),
    ]
    tab, _ = open_page(view)
    assert ATTACK in tab.page.locator(".event-text").all_inner_texts() and ATTACK in tab.row("attic-01").inner_text()
    assert ATTACK in tab.page.locator(".bar").inner_text()
    for name in ("../" + ATTACK, "attic-01"):
        tab.page.get_by_role("searchbox").fill(name[:40])
        tab.page.locator(".node-link", has_text=name).click()
        tab.page.wait_for_selector(".node-memory canvas")
        assert tab.page.get_by_role("heading", level=1).inner_text() == name
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector(".nodes")
    assert tab.page.evaluate(
        "window.attacked === undefined && document.querySelectorAll('main img, main script').length === 0"
    )


def test_a_lost_connection_is_said_and_comes_back(open_page: Opener) -> None:
    tab, server = open_page()
    server.stop()
    tab.page.locator(".lost", has_text="Connection lost since").wait_for()
    assert tab.page.locator(".live").inner_text() == "not live"
    tab.until("document.getElementById('announcer').textContent === 'The connection is lost.'")
    server.start()
    tab.page.locator(".lost").wait_for(state="hidden")
    # A proxy whose coordinator is gone answers with a status, after which browsers do not try again by themselves.
    server.broken = True
    server.cut()
    tab.page.locator(".lost", has_text="Connection lost since").wait_for()
    tab.page.wait_for_timeout(400)
    server.broken = False
    server.view.round = 9
    server.show()
    tab.page.locator(".pill", has_text="9/12").wait_for()
    assert tab.page.locator(".live").inner_text() == "live" and not tab.page.locator(".lost").is_visible()
    assert tab.complaints and all("Failed to load resource" in text for text in tab.complaints)
    tab.complaints.clear()


def test_the_end_of_a_run_is_no_alarm(open_page: Opener) -> None:
    view = fleet.run(2, done=12, troubles=False)
    view.phase, view.cohort, view.accepted = "finished", (), ()
    for node in view.nodes.values():
        node.online, node.state = False, "finished"
    tab, server = open_page(view)
    server.stop()
    tab.page.locator(".lost", has_text="The run is finished; its coordinator left at").wait_for()
    assert (
        tab.page.locator(".live").inner_text() == "ended"
        and tab.page.locator("#notice").get_attribute("data-key") is None
    )
    assert tab.page.get_by_role("button", name="Need attention 0").is_visible()
    tab.complaints.clear()


def test_nothing_yet(open_page: Opener) -> None:
    view = RunView("t", "fedkrso", 6, written_at=fleet.NOW, security="INSECURE: no TLS")
    tab, server = open_page(view)
    assert tab.page.get_by_text("No round is finished yet.").count() == 3
    assert (
        tab.page.get_by_text("No node has spoken yet.").is_visible()
        and not tab.page.get_by_role("searchbox").is_visible()
    )
    assert "bad-ink" in tab.page.locator(".security").get_attribute("class")
    server.show(fleet.run(2))
    tab.page.wait_for_selector(".chart canvas")
    assert tab.names() == ["home-0", "home-1"]


def test_three_hundred_rows_once_a_second(open_page: Opener) -> None:
    tab, server = open_page(fleet.run(300, total_rounds=100, done=42))
    assert len(tab.names()) == 300
    for beat in range(1, 7):
        for index, node in enumerate(server.view.nodes.values()):
            node.step, node.worker_bytes = (
                (node.step + beat) % 60,
                (node.worker_bytes or 0) + (index % 7 - 3) * fleet.MIB,
            )
        server.view.written_at = fleet.NOW + beat
        server.show()
        tab.page.wait_for_timeout(150)
    times = tab.page.evaluate("performance.getEntriesByName('fedkrso-draw').map((entry) => entry.duration).slice(1)")
    # Tens of milliseconds on two busy cores; half a second would be a bug, not a slow machine.
    assert len(times) >= 4 and sorted(times)[len(times) // 2] < 150, times


@pytest.mark.parametrize("width", [360, 820, 1280])
def test_nothing_is_wider_than_the_screen(open_page: Opener, width: int) -> None:
    tab, server = open_page(fleet.run(24), width=width, token=True)
    server.view.paused = True
    server.show()
    tab.page.get_by_role("button", name="Resume").wait_for()
    tab.page.get_by_role("button", name="Show as a table").click()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    cells = tab.page.locator(".nodes").locator(".col-name, .col-memory, .col-seen")
    assert cells.evaluate_all("cells => cells.every((cell) => cell.offsetWidth > 70)")
    tab.page.goto(f"{server.url}/nodes/attic-02")
    tab.page.wait_for_selector(".node-memory canvas")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width


def test_the_page_follows_the_system_s_scheme(open_page: Opener) -> None:
    tab, _ = open_page(color_scheme="dark", reduced_motion="reduce")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 23)"
    assert tab.page.evaluate("getComputedStyle(document.querySelector('.meter i')).transitionDuration") == "0s"
    tab.page.emulate_media(color_scheme="light")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 246, 248)"


def test_pages_of_the_server_in_the_test_are_those_of_the_package() -> None:
    server = PageServer(fleet.run(2))
    server.stop()
    assert RunView.decoded(server.encoded()) == server.view
