"""URLs as people, spreadsheets and programs write them, and their normalized form."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apixo.urls import normalize_url

FORMS = [
    ("https://h.example/a.mp4?X-Amz-Signature=a%2Bb%2fc&x=1+2'|{}~", "https://h.example/a.mp4?X-Amz-Signature=a%2Bb%2fc&x=1+2'|{}~"),
    ("https://H.example/%7Euser/ü.mp4", "https://h.example/%7Euser/%C3%BC.mp4"),
    ("https://h.example/100%25/ü", "https://h.example/100%25/%C3%BC"),  # never %2525
    ("https://h.example/test%20onno?X-Amz-Signature=1", "https://h.example/test%20onno?X-Amz-Signature=1"),
    (
        "https://h.example/ü?response-content-disposition=attachment%3Bfilename%3D%22a.mp4%22&X-Amz-Signature=1",
        "https://h.example/%C3%BC?response-content-disposition=attachment%3Bfilename%3D%22a.mp4%22&X-Amz-Signature=1",
    ),
    (" https://h.example/a b.mp4\n", "https://h.example/a%20b.mp4"),
    ("\ufeffhttps://h.example/a.mp4\u200b", "https://h.example/a.mp4"),
    ("\u00a0<https://h.example/a.mp4>", "https://h.example/a.mp4"),
    ("“https://h.example/a.mp4”", "https://h.example/a.mp4"),
    ("https://h.example/a.mp4#t=0,4", "https://h.example/a.mp4"),
    ("HTTPS://h.example/a.mp4", "https://h.example/a.mp4"),
    ("//h.example/a.mp4", "https://h.example/a.mp4"),
    ("h.example/a.mp4?sig=%2B", "https://h.example/a.mp4?sig=%2B"),
    ("h.example:8443/a.mp4", "https://h.example:8443/a.mp4"),
    ("localhost:9000/a.mp4", "https://localhost:9000/a.mp4"),
    ("https:h.example/a.mp4", "https://h.example/a.mp4"),
    ("https:\\/\\/h.example\\/a.mp4", "https://h.example/a.mp4"),
    ("https:\\\\h.example\\a.mp4?b=c\\d", "https://h.example/a.mp4?b=c\\d"),
    ("https://xn--mnchen-3ya.example/a.mp4", "https://xn--mnchen-3ya.example/a.mp4"),
    ("https://münchen.example/a.mp4", "https://xn--mnchen-3ya.example/a.mp4"),
    ("https://ｈ．example/a.mp4", "https://h.example/a.mp4"),  # noqa: RUF001 - wide letters are the point
    ("https://例え。テスト/a.mp4", "https://xn--r8jz45g.xn--zckzah/a.mp4"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "url"), FORMS)
def test_url_is_normalized(text: str, url: str) -> None:
    assert normalize_url(text) == url
    assert normalize_url(url) == url


@pytest.mark.parametrize("text", ["", "a.jpg", "/a.mp4", "ftp://h.example/a", "javascript:alert(1)", "https://[::1/a"])
def test_text_that_is_not_a_web_url_is_unchanged(text: str) -> None:
    assert normalize_url(text) == text


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b c", "https://h.example/b%20c"),
        ("b/ü", "https://h.example/a/b/%C3%BC"),
        ("?c=d e", "https://h.example/a/v.mp4?c=d%20e"),
        ("//i.example/b", "https://i.example/b"),
        ("\\\\i.example\\b", "https://i.example/b"),
        ("i.example/b", "https://h.example/a/i.example/b"),
        ("HTTP://i.example/b", "http://i.example/b"),
        ("https:b", "https://h.example/a/b"),
        ("data:text/html,b", "data:text/html,b"),
    ],
)
def test_relative_url_is_resolved_against_its_base(location: str, url: str) -> None:
    assert normalize_url(location, base="https://h.example/a/v.mp4?x=1") == url


@given(st.text(), st.none() | st.just("https://h.example/a/"))
def test_normalization_is_idempotent(text: str, base: str | None) -> None:
    url = normalize_url(text, base=base)
    try:
        httpx.URL(url)
    except httpx.InvalidURL:
        return
    if url.startswith(("https://", "http://")):
        assert normalize_url(url) == url
