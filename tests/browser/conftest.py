# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium for tests of the dashboard's page."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coordinator.store.view import RunView
from tests.browser import fleet
from tests.browser.pageserver import TOKEN, PageServer

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if binary is None:
        pytest.skip("no chromium on this machine (apt-get install chromium, or set CHROMIUM)")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A page in the browser: what it asked for, and what it complained of."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requested: list[str] = []
        page.set_default_timeout(10_000)
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requested.append(request.url))

    def row(self, name: str) -> Any:
        return self.page.locator(".nodes tbody tr", has=self.page.get_by_role("link", name=name, exact=True))

    def names(self) -> list[str]:
        """Of the rows, in order, as they are once the next frame is drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found: list[str] = self.page.locator(".nodes tbody .node-link").all_inner_texts()
        return found

    def focused(self) -> str:
        text: str = self.page.evaluate("document.activeElement.textContent || document.activeElement.id")
        return text

    def until(self, expression: str, seconds: float = 120.0) -> None:
        """Wait for a JavaScript expression to be true; one that reads an element which is not there yet is not. (Playwright's
        own waiting evaluates text in the page, which its policy forbids.)"""
        waiting = f"(() => {{ try {{ return {expression} }} catch (error) {{ if (!(error instanceof TypeError)) throw error }} }})()"
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(waiting):
            assert time.monotonic() < deadline, f"never true: {expression}"
            self.page.wait_for_timeout(20)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., tuple[Tab, PageServer]]]:
    """Opens the page on a canned run; nothing may be complained of at the end unless the test takes it away."""
    opened: list[tuple[Tab, PageServer, Any]] = []

    def open_(
        view: RunView | None = None,
        path: str = "/",
        *,
        width: int = 1280,
        control: bool = False,
        token: bool = False,
        clock: bool = False,
        **options: Any,
    ) -> tuple[Tab, PageServer]:
        server = PageServer(view or fleet.run(24), control=control or token)
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        if token:
            context.add_init_script(f"sessionStorage.setItem('fedkrso-token', '{TOKEN}')")
        tab = Tab(context.new_page())
        opened.append((tab, server, context))
        if clock:
            # The test moves the page's clock, which runs meanwhile.
            tab.page.clock.install()
        tab.page.goto(server.url + path)
        tab.page.wait_for_selector("main h1", state="attached")
        return tab, server

    yield open_
    for tab, server, context in opened:
        context.close()
        server.stop()
        assert tab.complaints == []
        assert {url.split("/")[2] for url in tab.requested} == {f"127.0.0.1:{server.port}"}
