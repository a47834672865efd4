# SPDX-License-Identifier: Apache-2.0
"""The page's files, without a browser: what is vendored is what it says, nothing parses HTML, and colours can be
read."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from fedcore.device.memoryplan import COMPONENT_NAMES
from tests.browser.pageserver import STATIC

OWN = sorted(path for path in STATIC.rglob("*") if path.is_file() and "vendor" not in path.parts)
SOURCES = {path.relative_to(STATIC).as_posix(): path.read_text() for path in OWN}


def test_vendored_files_are_those_that_are_named() -> None:
    folder = STATIC / "vendor" / "uplot"
    text = (folder / "VENDORED").read_text()
    named = dict(reversed(line.split("  ")) for line in re.findall(r"^[0-9a-f]{64}  \S+$", text, re.M))  # type: ignore[arg-type]
    assert named == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "VENDORED"
    }
    assert "MIT" in (folder / "LICENSE").read_text() and sum(path.stat().st_size for path in folder.iterdir()) < 60_000


def test_nothing_parses_html_or_code_and_nothing_is_fetched_from_elsewhere() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|createContextualFragment|cssText"
    )
    for name, text in SOURCES.items():
        assert not forbidden.search(text), name
        links = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text)) - {"http://www.w3.org", "//www.w3.org"}
        assert not links, name
    page = SOURCES["index.html"]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page)
    assert all(
        re.match(r"<script src=\"/static/[^\"]+\" (defer|type=\"module\")></script>", tag)
        for tag in re.findall(r"<script.*", page)
    )


def test_every_file_that_is_named_is_there() -> None:
    for name, text in SOURCES.items():
        for path in re.findall(r'"/static/([^"]+)"', text):
            assert (STATIC / path).is_file(), f"{name}: {path}"
        for path in re.findall(r'from "(\.[^"]+)"', text):
            assert (STATIC / name).parent.joinpath(path).resolve().is_file(), f"{name}: {path}"


def test_parts_of_the_plan_have_the_names_that_the_planner_gives_them() -> None:
    found = re.search(r"export const PARTS = (\{.*?\});", SOURCES["js/views/nodeparts.js"], re.S)
    assert found is not None
    text = re.sub(r",\s*}", "}", re.sub(r"(\w+):", r'"\1":', found[1]))
    assert list(json.loads(text).items()) == list(COMPONENT_NAMES.items())


def schemes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", SOURCES["style.css"], re.S)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block)) for block in blocks[:2])
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    colours = schemes()[scheme]
    assert contrast("#ffffff", "#000000") == 21
    grounds = ("page", "card", "raised")
    text = [(ink, ground) for ink in ("ink", "soft", "accent", "good", "warn", "bad") for ground in grounds]
    text += [("accent", "wash"), ("ink", "wash"), ("on-accent", "accent")]
    text += [(key, f"{key}-wash") for key in ("good", "warn", "bad")]
    shapes = [(line, "card") for line in ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "edge")]
    shapes += [(fill, "meter") for fill in ("c1", "warn", "bad")]
    found = {
        pair: (contrast(colours[pair[0]], colours[pair[1]]), least)
        for pairs, least in ((text, 4.5), (shapes, 3))
        for pair in pairs
    }
    assert {pair: round(has, 2) for pair, (has, least) in found.items() if has < least} == {}
