"""The gallery's script and style sheet, as far as they can be checked without a browser."""

import re

import pytest

from deployments.gallery.pages import HERE, load_static

SCRIPT = (HERE / "static" / "gallery.js").read_text()
STYLES = (HERE / "static" / "gallery.css").read_text()
PAGES = "".join(path.read_text() for path in sorted((HERE / "templates").iterdir()))


@pytest.mark.parametrize(
    "way", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "setAttribute("]
)
def test_script_never_turns_text_into_markup(way: str) -> None:
    assert way not in SCRIPT


def test_elements_that_the_script_selects_are_in_the_pages() -> None:
    for name in set(re.findall(r'"#([a-z]+)[ "]', SCRIPT)):
        assert f'id="{name}"' in PAGES, name
    for name in set(re.findall(r"\[data-([a-z-]+)\]", SCRIPT)):
        assert f"data-{name}" in PAGES, name


def test_script_handles_every_documented_key() -> None:
    for key in ("/", "Escape", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        assert f'"{key}"' in SCRIPT or f"{key}:" in SCRIPT, key


def test_nothing_is_external_and_no_style_or_script_is_inline() -> None:
    for text in (SCRIPT, STYLES, PAGES):
        assert not re.search(r"(?:src|href)=[\"']https?:|url\(|@import|import\(", text)
    assert not re.search(r"<style|<script(?! src=)| on[a-z]+=| style=", PAGES)
    assert set(load_static()) == {"gallery.css", "gallery.js", "icon.svg"}


def test_light_and_dark_themes_define_the_same_colors() -> None:
    light, dark = (set(re.findall(r"(--[a-z-]+):", part)) for part in re.findall(r":root \{(.*?)\}", STYLES, re.DOTALL))
    assert light == dark
