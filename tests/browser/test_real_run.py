# SPDX-License-Identifier: Apache-2.0
"""The page on a real run: broker, coordinator with its dashboard, two homes that train, and an operator in a
browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, needs_mosquitto, wait_for

from tests.browser.conftest import Tab

pytestmark = pytest.mark.usefixtures("quick_workers")

TOKEN = "0123456789abcdef-browser"


@pytest.mark.slow
def test_a_real_run_is_seen_and_led_from_the_browser(chromium: Any, minilm_folder: Path, tmp_path: Path) -> None:
    needs_mosquitto()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ada {TOKEN}\n")
    tokens.chmod(0o600)
    cluster = Cluster(tmp_path, "mosquitto", rounds=2, steps=3)
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    try:
        flags = ("--dashboard=127.0.0.1:0", f"--dashboard-token-file={tokens}")
        coordinator = cluster.start("coordinator", "run", cluster.folder / "job.toml", "--runs", cluster.folder, *flags)
        wait_for(cluster, "dashboard: http")
        found = re.search(r"dashboard: (http://127\.0\.0\.1:(\d+)/)", cluster.output())
        assert found is not None
        tab = Tab(context.new_page())
        page = tab.page
        # The coordinator prepares a model and homes train meanwhile: on a slow machine a page takes as long as it takes.
        page.set_default_timeout(600_000)
        page.goto(found[1])
        page.get_by_text("No node has spoken yet.").wait_for()
        homes = [cluster.home(index) for index in range(2)]

        page.get_by_role("button", name="Take control").click()
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        cluster.until(page.locator(".pill", has_text="1/2 · round open").is_visible)
        page.get_by_role("button", name="Pause").click()
        page.locator(".said", has_text="paused").wait_for()
        assert tab.names() == ["home-0", "home-1"]

        # A home at work: its memory within its budget, and where it goes over time.
        page.get_by_role("link", name="home-0").click()
        page.wait_for_selector(".node-memory canvas")
        tab.until("/ 640 MiB$/.test(document.querySelector('.memory-now').innerText)", 600)
        page.keyboard.press("Escape")

        # The round ends, its published state is evaluated, and no other opens until somebody says so.
        cluster.until(page.locator(".pill", has_text="2/2 · paused").is_visible)
        accuracy = "/^Accuracy\\n[0-9.]+ %/.test(document.querySelectorAll('.tile')[3].innerText)"
        cluster.until(lambda: page.evaluate(accuracy))
        assert page.locator(".chart canvas").count() == 3
        page.get_by_role("button", name="Resume").click()
        cluster.until(page.locator(".pill", has_text="2/2 · finished").is_visible)

        tab.until("document.querySelectorAll('.nodes [data-key=good].sub').length === 2", 600)

        summary = cluster.summary(coordinator)
        page.locator(".lost", has_text="its coordinator left at").wait_for()
        accuracy, digest = (page.locator(".tile-value").nth(i).inner_text() for i in (3, 6))
        assert accuracy == f"{100 * summary['final']['accuracy']:.1f} %" and digest == summary["final"]["digest"][:12]
        assert page.locator(".event-head", has_text="command").count() == 2
        assert cluster.exit_codes(*homes) == [0, 0]
        assert {url.split("/")[2] for url in tab.requested} == {f"127.0.0.1:{found[2]}"}
        assert all("ERR_CONNECTION" in text or "ERR_INCOMPLETE" in text for text in tab.complaints), tab.complaints
    finally:
        context.close()
        cluster.close()
