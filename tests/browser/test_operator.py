# SPDX-License-Identifier: Apache-2.0
"""The page without a mouse, for ears, and with a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser import fleet
from tests.browser.pageserver import TOKEN

Opener = Callable[..., Any]


def test_a_walk_with_the_keyboard(open_page: Opener) -> None:
    tab, _ = open_page()
    press = tab.page.keyboard.press
    press("Tab")
    assert tab.focused() == "Skip to the content"
    press("/")
    assert tab.page.evaluate("document.activeElement.id") == "filter"
    tab.page.keyboard.type("orin nano")
    assert len(tab.names()) == 5
    press("ArrowDown")
    first, second, *_ = tab.names()
    assert tab.focused() == first
    press("ArrowDown")
    assert tab.focused() == second
    press("k")
    press("j")
    assert tab.focused() == second
    press("Enter")
    tab.page.wait_for_selector(".node-page")
    assert tab.page.url.endswith(f"/nodes/{second}#q=orin+nano") and tab.focused() == second
    press("Escape")
    tab.page.wait_for_selector(".nodes")
    assert tab.focused() == second and len(tab.names()) == 5
    press("Escape")
    tab.until("document.querySelectorAll('.nodes tbody tr').length === 24")
    press("a")
    tab.until("document.querySelectorAll('.nodes tbody tr').length === 5")
    press("?")
    assert tab.page.get_by_role("dialog", name="Keyboard").is_visible()
    press("a")
    press("Escape")
    tab.page.locator("dialog").wait_for(state="detached")
    assert len(tab.names()) == 5


def test_arrows_scroll_where_no_rows_are_walked_through(open_page: Opener) -> None:
    tab, _ = open_page()
    tab.page.keyboard.press("ArrowDown")
    tab.until("scrollY > 0")
    assert tab.page.evaluate("document.activeElement === document.body")


def test_the_focus_stays_on_a_row_that_moves(open_page: Opener) -> None:
    tab, server = open_page(path="/#sort=state")
    tab.page.get_by_role("link", name="hall-03").focus()
    server.view.nodes["hall-03"].online = False
    server.show()
    tab.until(
        "[...document.querySelectorAll('.nodes tbody tr')].findIndex((row) => row.innerText.startsWith('hall-03')) < 4"
    )
    assert tab.focused() == "hall-03"


NAMELESS = """() => [...document.querySelectorAll('a, button, input, select, [role=meter], [role=img], [role=region], [role=progressbar]')]
    .filter((e) => e.checkVisibility() && !e.closest('[aria-hidden=true]'))
    .filter((e) => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim() || e.getAttribute('aria-labelledby')))
    .map((e) => e.outerHTML)"""
WRONG = """() => {
    const found = [];
    const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
    if (new Set(ids).size !== ids.length) found.push('an id twice');
    if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
    if (document.querySelectorAll('main').length !== 1 || !document.documentElement.lang) found.push('no main or no language');
    for (const e of document.querySelectorAll('img')) if (!e.hasAttribute('alt')) found.push('an image without alt');
    for (const e of document.querySelectorAll('th')) if (!e.scope) found.push('a th without scope: ' + e.textContent);
    for (const e of document.querySelectorAll('table')) if (!e.caption) found.push('a table without caption');
    for (const e of document.querySelectorAll('[tabindex]')) if (e.tabIndex > 0) found.push('a tabindex above 0');
    for (const name of ['aria-labelledby', 'aria-controls', 'aria-describedby'])
        for (const e of document.querySelectorAll(`[${name}]`))
            for (const id of e.getAttribute(name).split(' ')) if (!document.getElementById(id)) found.push(`${name} of nothing: ${id}`);
    for (const e of document.querySelectorAll('[role=meter], [role=progressbar]'))
        if (e.checkVisibility() && ![e.ariaValueNow, e.ariaValueMin, e.ariaValueMax].every(Boolean)) found.push('a meter without values');
    for (const e of document.querySelectorAll('canvas')) if (!e.closest('[role=img][aria-label]')) found.push('a chart without words');
    for (const e of document.querySelectorAll('dl > *')) if (!['DT', 'DD', 'DIV'].includes(e.tagName)) found.push('something else in a dl');
    let level = 0;
    for (const e of document.querySelectorAll('h1, h2, h3')) {
        if (+e.tagName[1] > level + 1) found.push('a heading skips a level: ' + e.textContent);
        level = +e.tagName[1];
    }
    return found;
}"""
UNSEEN = """() => {
    const style = getComputedStyle(document.activeElement);
    return style.outlineStyle === 'none' || parseFloat(style.outlineWidth) < 2 ? document.activeElement.outerHTML : null;
}"""


@pytest.mark.parametrize(
    ("path", "width"), [("/", 1280), ("/", 390), ("/nodes/porch-01", 1280), ("/nodes/nobody", 390)]
)
def test_the_page_for_ears(open_page: Opener, path: str, width: int) -> None:
    tab, _ = open_page(path=path, width=width, token=True)
    tab.until("document.querySelector('canvas') || document.body.innerText.includes('No node of this name')")
    for toggle in tab.page.get_by_role("button", name="Show as a table").all():
        toggle.click()
    assert tab.page.evaluate(NAMELESS) == [] and tab.page.evaluate(WRONG) == []
    assert tab.page.locator("#announcer").get_attribute("aria-live") == "polite"
    if path == "/":
        headings = tab.page.locator(".nodes").get_by_role("columnheader").all_inner_texts()
        assert headings[0].startswith("Node") and tab.page.locator(".nodes").get_by_role("rowheader").count() == 24
        assert tab.page.get_by_role("meter").first.get_attribute("aria-valuetext").endswith(" %")


def test_whatever_has_the_focus_is_seen_to_have_it(open_page: Opener) -> None:
    tab, _ = open_page(fleet.run(2), token=True)
    seen = set()
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement === document.body"):
            break
        assert tab.page.evaluate(UNSEEN) is None
        seen.add(tab.focused())
    assert {
        "Skip to the content",
        "Pause",
        "End round now",
        "operator",
        "?",
        "Show as a table",
        "home-0",
        "home-1",
        "filter",
    } <= seen


def test_read_only_says_how_it_would_not_be(open_page: Opener) -> None:
    tab, _ = open_page()
    assert not tab.page.get_by_role("button", name="Pause").is_visible()
    tab.page.get_by_role("button", name="Read-only").click()
    assert "--dashboard-token-file" in tab.page.get_by_role("dialog").inner_text()
    tab.page.keyboard.press("Escape")
    tab.page.get_by_role("link", name="hall-01").click()
    tab.page.wait_for_selector(".node-page")
    assert not tab.page.get_by_role("button", name="Exclude").is_visible()


def test_control_needs_the_token_and_only_this_tab_keeps_it(open_page: Opener) -> None:
    tab, server = open_page(control=True)
    tab.page.get_by_role("button", name="Take control").click()
    tab.page.get_by_label("Token").fill("not the token")
    tab.page.keyboard.press("Enter")
    tab.page.get_by_role("alert").filter(has_text="This is not the token.").wait_for()
    tab.page.get_by_label("Token").fill(TOKEN)
    tab.page.keyboard.press("Enter")
    tab.page.get_by_role("button", name="Pause").click()
    tab.page.get_by_role("status").filter(has_text="done: pause").wait_for()
    assert server.commands == [{"command": "pause"}]
    assert tab.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    assert TOKEN not in tab.page.content() and not any(TOKEN in url for url in tab.requested)
    tab.page.reload()
    tab.page.get_by_role("button", name="operator").click()
    tab.page.get_by_role("button", name="Give up control").click()
    tab.page.get_by_role("button", name="Take control").wait_for()
    assert (
        tab.page.evaluate("sessionStorage.length") == 0
        and not tab.page.get_by_role("button", name="Pause").is_visible()
    )


def test_what_cannot_be_taken_back_is_asked_about(open_page: Opener) -> None:
    tab, server = open_page(token=True)
    end = tab.page.get_by_role("button", name="End round now")
    end.click()
    assert tab.focused() == "Cancel"
    tab.page.keyboard.press("Enter")
    end.click()
    tab.page.keyboard.press("Escape")
    end.click()
    tab.page.get_by_role("button", name="End round", exact=True).click()
    tab.page.get_by_role("status").filter(has_text="done: end_round").wait_for()
    tab.page.get_by_role("link", name="hall-01").click()
    tab.page.get_by_role("button", name="Exclude").click()
    assert tab.page.get_by_role("dialog", name="Exclude hall-01?").is_visible()
    tab.page.get_by_role("dialog").get_by_role("button", name="Exclude").click()
    tab.page.get_by_role("status").filter(has_text="done: exclude hall-01").wait_for()
    server.view.excluded = ("hall-01",)
    server.show()
    tab.page.get_by_role("button", name="Admit again").click()
    tab.page.get_by_role("status").filter(has_text="done: readmit hall-01").wait_for()
    assert [order["command"] for order in server.commands] == ["end_round", "exclude", "readmit"]


def test_a_refusal_is_one_line_and_a_token_that_became_wrong_is_forgotten(open_page: Opener) -> None:
    tab, server = open_page(token=True)
    server.answer = 409, {"error": "round 7 has 8 of the 12 updates of its quorum: it cannot end yet"}
    tab.page.get_by_role("button", name="End round now").click()
    tab.page.get_by_role("button", name="End round", exact=True).click()
    tab.page.get_by_role("status").filter(has_text="it cannot end yet").wait_for()
    tab.page.get_by_role("button", name="Dismiss").click()
    tab.page.locator(".answer").wait_for(state="hidden")
    server.answer = 401, {"error": "this is not the token"}
    tab.page.get_by_role("button", name="Pause").click()
    tab.page.get_by_role("status").filter(has_text="this is not the token").wait_for()
    tab.page.get_by_role("button", name="Take control").wait_for()
    assert tab.page.evaluate("sessionStorage.length") == 0
    assert all("409" in text or "401" in text for text in tab.complaints) and len(tab.complaints) == 2
    tab.complaints.clear()


def test_a_paused_run_offers_to_go_on(open_page: Opener) -> None:
    tab, server = open_page(token=True)
    server.view.paused = True
    server.show()
    tab.page.get_by_role("button", name="Resume").click()
    tab.page.get_by_role("status").filter(has_text="done: resume").wait_for()
    assert tab.page.locator(".pill").inner_text() == "7/12 · pausing after this round"
    assert server.commands == [{"command": "resume"}]
