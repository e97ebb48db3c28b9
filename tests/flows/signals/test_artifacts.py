"""The artifact in the Prefect UI: external text stays plain text, and no signature gets in."""

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from prefect.client.schemas.actions import ArtifactCreate
from pydantic import SecretStr

from apixo import VideoRequest
from blocks import VideoArchive
from flows.record import transitions
from flows.record.advice import advice
from flows.record.generation import ArchivedObject, Generation
from flows.signals.artifacts import artifact_key, plain
from flows.signals.run_artifacts import failure_markdown
from flows.signals.video_artifact import markdown
from tests.flows.record.changes import LATER, claimed, fail, submit, succeed

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
FOLDER = "videos/2026/03/01"


def archive(public_url: str | None = None, *, gateway_url: str | None = None) -> VideoArchive:
    return VideoArchive(
        endpoint="minio.example:9000",
        access_key="ACCESS",
        secret_key=SecretStr("HIDDEN"),
        bucket="videos",
        public_url=public_url,
        gateway_url=gateway_url,
        gateway_secret=SecretStr("5ecret" * 4) if gateway_url else None,
    )


def generation(
    prompt: str = "Dunes",
    *,
    key: str = "kite",
    task_id: str = "t1",
    warnings: tuple[str, ...] = (),
    codec: str = "h264",
    **request: Any,
) -> Generation:
    found = submit(claimed(key=key, request=VideoRequest(prompt=prompt, **request)), task_id)
    found = succeed(found, task_id, "https://h.example/v.mp4?X-Amz-Signature=ab")
    objects: tuple[dict[str, Any], ...] = (
        {
            "kind": "video", "name": "video.mp4", "content_type": "video/mp4", "size_bytes": 1234567,
            "sha256": "a" * 64, "codec": codec, "duration_seconds": 4.004, "width": 1280, "height": 720,
        },
        {"kind": "poster", "name": "poster.jpg", "content_type": "image/jpeg", "size_bytes": 1, "sha256": "b" * 64},
    )  # fmt: skip
    return transitions.archived(
        found,
        task=found.task,
        objects=tuple(
            ArchivedObject.model_validate({**item, "bucket": "videos", "name": f"{FOLDER}/{key}/{item['name']}"})
            for item in objects
        ),
        warnings=warnings,
        now=LATER,
    )


def inline(tokens: list[Token]) -> list[Token]:
    return [child for token in tokens for child in token.children or []]


def shape(text: str) -> list[str]:
    """Everything that a renderer makes of a text, except the text itself."""
    tokens = RENDERER.parse(text)
    made = [token.type for token in tokens] + [token.type for token in inline(tokens)]
    return [name for name in made if name not in ("text", "softbreak", "text_special")]


def test_artifact_shows_the_video_and_its_objects() -> None:
    text = markdown(generation(warnings=("4.0 s asked, 3.0 s got",)), archive(), thumbnail=b"jpeg")
    for part in (
        "# kite",
        "![first look](data:image/jpeg;base64,anBlZw==)",
        "> Dunes",
        "| state | archived |",
        "| task | t1 |",
        "| video | 4.00 s, 1280 x 720, h264, 1,234,567 bytes |",
        f"| SHA-256 | {'a' * 64} |",
        f"| video | videos/{FOLDER}/kite/video.mp4 |",
        f"| poster | videos/{FOLDER}/kite/poster.jpg |",
        "| warning | 4.0 s asked, 3.0 s got |",
    ):
        assert part in text.splitlines() or part in text, part
    assert "](http" not in text


def test_public_url_gives_a_player_and_unsigned_links() -> None:
    text = markdown(generation(), archive("https://videos.example.com/"), thumbnail=None)
    links = [token.attrs["href"] for token in inline(RENDERER.parse(text)) if token.type == "link_open"]
    video = f"https://videos.example.com/videos/{FOLDER}/kite/video.mp4"
    assert links == [video, f"https://videos.example.com/videos/{FOLDER}/kite/poster.jpg", video]
    poster = video.replace("video.mp4", "poster.jpg")
    player = f'<video controls preload="none" width="640" poster="{poster}" src="{video}"></video>'
    assert player in text.splitlines()
    assert "![" not in text


def test_gallery_url_gives_a_player_and_links_for_this_video_only() -> None:
    block = archive("https://videos.example.com", gateway_url="https://gallery.example.com/")
    text = markdown(generation(), block, thumbnail=None)
    token = block.gateway_token("kite")
    video = f"https://gallery.example.com/v/kite/video.mp4?t={token}"
    links = [token.attrs["href"] for token in inline(RENDERER.parse(text)) if token.type == "link_open"]
    assert links == [video, video.replace("video.mp4", "poster.jpg"), "https://gallery.example.com/k/kite", video]
    assert f'src="{video}"' in text
    for secret in ("X-Amz", "HIDDEN", "ACCESS", "5ecret", block.gateway_token("other")):
        assert secret not in text


def test_gif_is_shown_as_an_image() -> None:
    found = generation()
    named = {"content_type": "image/gif", "name": "video.gif"}
    objects = [item.model_copy(update=named) if item.kind == "video" else item for item in found.objects]
    block = archive("https://videos.example.com")
    text = markdown(found.model_copy(update={"objects": tuple(objects)}), block, thumbnail=None)
    assert "![the video](https://videos.example.com/videos/video.gif)" in text
    assert "<video" not in text


def test_link_command_replaces_player_without_a_public_url() -> None:
    text = markdown(generation(), archive(), thumbnail=None)
    assert "<video" not in text
    assert "`sora show kite --link`" in text
    assert "`sora show kite --save video.mp4`" in text
    elsewhere = markdown(generation(), archive(), thumbnail=None, options=" --api a --archive b")
    assert "`sora show kite --link --archive b`" in elsewhere
    assert "`sora show kite --save video.mp4 --archive b`" in elsewhere


def test_artifact_shows_request_cost_and_step_times() -> None:
    text = markdown(generation(), archive(), thumbnail=None, cost=Decimal("1.20"))
    for line in (
        "| requested | 4 s, landscape, text\\-to\\-video, without watermark |",
        "| cost | 1.20, at the API block's prices |",
        "| validate\\_image | before the submission | no images |",
        "| submit | 2026-03-01 12:05:00 UTC | 300.0 s |",
        "| wait | 2026-03-01 12:05:00 UTC | 0.0 s |",
        "| fetch | | |",
        "| archive | 2026-03-01 12:05:00 UTC | 0.0 s, with the download |",
    ):
        assert line in text.splitlines(), line
    assert "cost" not in markdown(generation(), archive(), thumbnail=None)


def test_start_image_url_is_shown_without_its_query() -> None:
    made = generation()
    request = VideoRequest(prompt="x", image_urls=["https://example.com/a.jpg?X-Amz-Signature=5ecret"])
    text = markdown(made.model_copy(update={"request": request}), archive(), thumbnail=None)
    assert "5ecret" not in text
    assert "| start image | https&#58;//example.com/a.jpg?… |" in text.splitlines()
    assert "1 image |" in text


def test_artifact_contains_no_secret_and_no_signature() -> None:
    text = markdown(generation(), archive("https://videos.example.com"), thumbnail=b"x")
    for secret in ("X-Amz", "HIDDEN", "ACCESS", "?"):
        assert secret not in text


def test_artifact_without_a_video_shows_what_is_known() -> None:
    assert "| task | none |" in markdown(claimed(), archive(), thumbnail=None)
    assert "| state | failed |" in markdown(fail(submit(claimed())), archive(), thumbnail=None)


def test_unset_fields_of_another_models_request_are_omitted() -> None:
    text = markdown(generation(model="kling-2-6", options={"sound": True}), archive(), thumbnail=None)
    assert "None" not in text
    assert "| requested | 5 s, landscape, text\\-to\\-video with kling\\-2\\-6 |" in text.splitlines()


@pytest.mark.parametrize("text", ["![](https://e.example/a.png)", "a|b", "<img src=//e.example/a>", "x\0\u202e"])
def test_fields_not_checked_by_the_catalog_stay_plain_text(text: str) -> None:
    def shown(value: str) -> str:
        found = generation(model="future-1", aspect_ratio=value, mode=value, duration=4)
        return markdown(found, archive(), thumbnail=None) + failure_markdown("kite", "no", advice(found, ""), found)

    assert shape(shown(text)) == shape(shown("x"))
    assert re.findall(CONTROLS, shown(text).replace("\n", "")) == []


CONTROLS = "[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
NASTY = [
    "a | b",
    "`code` and ``more``",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &#60;b&#62;",
    "![image](https://evil.example/a.png)",
    "[link](javascript:alert(1))",
    "[a]: https://evil.example",
    "[a][b]",
    "<https://evil.example>",
    "https://evil.example/a and www.evil.example and me@evil.example",
    "# heading",
    "> quote",
    "- item",
    "* item",
    "+ item",
    "1. item",
    "12) item",
    "---",
    "***",
    "===",
    "~~~",
    "```\ncode\n```",
    "    code",
    "\tcode",
    "**bold** _it_ __b__ ~~gone~~",
    "one\n\n# two\n\n| a | b |\n|---|---|",
    "one\r\ntwo\x0bthree\x0cfour\u2028five\u2029six\x85seven",
    "back\\slash \\| \\` \\<b>",
    "trailing \\",
    "|---|---|",
    ":fire: $x$ $$y$$",
    "<!-- comment -->",
    "&copy; &amp;",
    "<div onclick=alert(1)",
    "</table ",
    "\x1b[31mred\x1b[0m \x9b2J \x1b]8;;http://evil.example\x07",
    "\u202eexe.fdp\u202c \u2066x\u2069 \x00 \x7f",
    "[bold]rich[/bold] {{ 7 * 7 }} {% raw %} %s {0}",
    "<svg/onload=alert(1)> <a href='javascript:alert(1)'>x</a>",
    "=cmd|' /C calc'!A0",
]


@pytest.mark.parametrize("text", NASTY)
def test_markup_in_any_field_stays_plain_text(text: str) -> None:
    clean = shape(markdown(generation("Dunes", warnings=("shorter",)), archive(), thumbnail=None))
    nasty = generation(text, task_id=text[:150].replace("\n", " "), warnings=(text,), codec=text)
    assert shape(markdown(nasty, archive(), thumbnail=None)) == clean


@pytest.mark.parametrize("text", NASTY)
def test_artifact_contains_no_control_or_bidi_characters(text: str) -> None:
    """PostgreSQL rejects NUL, so a single one would lose the artifact."""
    made = markdown(generation(text, warnings=(text,), codec=text), archive(), thumbnail=None)
    assert re.findall(CONTROLS, made.replace("\n", "")) == []


@pytest.mark.parametrize("text", NASTY)
def test_escaped_text_is_still_readable(text: str) -> None:
    for place in ("{}", "| a | b |\n|---|---|\n| {} | c |"):
        shown = "".join(token.content for token in inline(RENDERER.parse(place.format(plain(text)))))
        readable = re.sub(CONTROLS, "\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
        assert shown.removeprefix("ab").removesuffix("c") == readable


@given(st.text(alphabet=st.sampled_from("ab1.|`*_[]()<>!#&;\\-+~=:/\n\t \"'@wx"), max_size=40))
def test_no_text_becomes_markup(text: str) -> None:
    assert shape(f"> {plain(text)}\n") == shape("> x\n") or not plain(text)
    assert shape(f"| a | b |\n|---|---|\n| {plain(text)} | c |\n") == shape("| a | b |\n|---|---|\n| x | c |\n") or (
        not plain(text)
    )


@pytest.mark.parametrize("text", ["http://evil.example", "HTTPS://evil.example", "ftp://e.example", "www.evil.example"])
def test_bare_urls_do_not_become_links(text: str) -> None:
    """Renderers of GitHub-flavored Markdown, such as the UI's, turn anything that looks like a URL into a link."""
    assert not re.search(r"(?i)(https?|ftp)://|www\.", plain(text))
    assert "@" not in plain("me@evil.example")


@pytest.mark.parametrize("key", ["a-_b_-c", "a.__b__.c", "kite"])
def test_key_does_not_become_markup(key: str) -> None:
    for public_url in (None, "https://videos.example.com"):
        clean = shape(markdown(generation(), archive(public_url), thumbnail=None))
        assert shape(markdown(generation(key=key), archive(public_url), thumbnail=None)) == clean


def test_very_long_prompt_is_truncated() -> None:
    assert len(markdown(generation("x" * 10_000), archive(), thumbnail=None)) < 3_000


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True))
def test_every_key_gives_a_valid_prefect_artifact_key(key: str) -> None:
    assert ArtifactCreate(key=artifact_key(key), type="markdown").key == artifact_key(key)


def test_artifact_key_contains_a_simple_key_unchanged() -> None:
    assert artifact_key("spring-sale-03") == "video-spring-sale-03"


def test_different_keys_have_different_artifacts() -> None:
    """Prefect shows all artifacts with the same key as versions of one artifact."""
    keys = ["a-b", "a.b", "a_b", "a--b", "a-b-", "a..b", "a-.b"]
    assert len({artifact_key(key) for key in keys}) == len(keys)
