"""The gallery's pages: what is shown, searched and escaped, and which videos need a manual decision."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import unescape
from itertools import pairwise

import pytest

from blocks.object_store import ObjectStore
from deployments.cli.generate import _option
from deployments.gallery.attention import generate_command, notices, pieces
from deployments.gallery.delivery import download_name
from deployments.gallery.filters import Filters, menus
from deployments.gallery.index import Item
from flows.record.generation import Generation, State
from tests.deployments.gallery.sample_records import (
    GUARDED,
    NOW,
    PASSWORD,
    OpenGallery,
    make_generation,
    put_generations,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "</textarea></title><svg/onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} ${alert(1)}",
    "مرحبا \u202eexe.fdp\u202c שלום",
    "🎈🦊👩‍👩‍👧‍👦 \x00\x1b[31m \ufffe",
    "x" * 10_000,
    "&lt;b&gt; &amp;",
]


def tags(page: str) -> list[str]:
    return re.findall(r"<[a-zA-Z/!][^>]*>", page)


@pytest.mark.parametrize("prompt", HOSTILE)
async def test_hostile_text_is_escaped(open_gallery: OpenGallery, store: ObjectStore, prompt: str) -> None:
    await put_generations(store, make_generation("kite", prompt, options={}))
    async with open_gallery() as gallery:
        pages = [(await gallery.get(path)).text for path in ("/", "/k/kite")]
        searched = (await gallery.get("/", params={"q": prompt, "tag": prompt, "batch": prompt, "model": prompt})).text
    shown = [tag for page in [*pages, searched] for tag in tags(page)]
    assert not [
        tag for tag in shown if re.match(r"<(script(?! src)|svg|b>|img src=x)", tag) or " on" in tag.split('"')[0]
    ]
    assert prompt in unescape(pages[1]).replace("\r", "")
    assert "49" not in re.findall(r'id="prompt"[^>]*>([^<]*)<', pages[1])


async def test_gif_is_shown_as_an_image(open_gallery: OpenGallery, store: ObjectStore) -> None:
    generation = make_generation("kite")
    gif_fields = {"content_type": "image/gif", "name": "videos/2026/03/10/kite/video.gif"}
    objects = [item.model_copy(update=gif_fields) if item.kind == "video" else item for item in generation.objects]
    await put_generations(store, generation.model_copy(update={"objects": tuple(objects)}))
    async with open_gallery() as gallery:
        overview, page = [(await gallery.get(path)).text for path in ("/", "/k/kite")]
    assert "data-moving" in overview
    assert "<video" not in page
    assert '<img src="/v/kite/video.gif"' in page


async def test_page_loads_nothing_from_other_hosts(open_gallery: OpenGallery, store: ObjectStore) -> None:
    await put_generations(store, make_generation("kite"))
    async with open_gallery() as gallery:
        answer = await gallery.get("/")
        files = [(await gallery.get(path)) for path in re.findall(r'(?:href|src)="(/static/[^"]+)"', answer.text)]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "style=" not in answer.text
    assert not re.search(r"(?:href|src)=\"(?:https?:)?//", answer.text)
    assert [file.status_code for file in files] == [200] * len(files)
    assert {file.headers["content-type"].partition(";")[0] for file in files} == {
        "text/css", "text/javascript", "image/svg+xml"
    }  # fmt: skip


async def test_video_page_has_prompt_price_tags_links_and_command(
    open_gallery: OpenGallery, store: ObjectStore
) -> None:
    await put_generations(
        store, make_generation("kite", "A red kite", tags=["hero"], price=Decimal("0.40"), run="run-1")
    )
    async with open_gallery(**GUARDED) as gallery:
        page = (await gallery.get("/k/kite", headers={"Authorization": f"Bearer {PASSWORD}"})).text
        link = f"https://videos.example.com/v/kite/video.mp4?t={gallery.token('kite')}"
    for part in ("A red kite", "0.40 USD", "hero", "4.0 s, 1280", "?download=1", "sora generate", "/poster.jpg"):
        assert part in page, part
    assert link in unescape(page)


async def test_unreadable_record_is_reported(open_gallery: OpenGallery, store: ObjectStore) -> None:
    await put_generations(store, make_generation("kite"))
    await store.put("ledger/broken.json", b"{")
    async with open_gallery() as gallery:
        page = (await gallery.get("/")).text
    assert "1 record cannot be read: broken" in page


async def test_overview_is_paginated(open_gallery: OpenGallery, store: ObjectStore) -> None:
    await put_generations(store, *(make_generation(f"kite-{number:03}", state=State.SUBMITTED) for number in range(50)))
    async with open_gallery() as gallery:
        first, second = [(await gallery.get("/", params={"page": page})).text for page in (1, 2)]
        beyond = await gallery.get("/", params={"page": "99"})
    assert (first.count('class="card'), second.count('class="card')) == (
        48 + 1,
        2 + 1,
    )  # one more for the list element itself
    assert 'href="/?page=2"' in first
    assert beyond.status_code == 200


async def test_attention_summary_counts_all_items_of_each_kind(open_gallery: OpenGallery, store: ObjectStore) -> None:
    late = [
        make_generation(f"late-{number:02}", state=State.SUBMITTED, at=NOW - timedelta(days=13)) for number in range(50)
    ]
    await put_generations(store, *late, *(make_generation(f"bad-{number}", state=State.FAILED) for number in range(3)))
    async with open_gallery() as gallery:
        page = (await gallery.get("/")).text
    summary = re.findall(r"<summary>(.*?attention.*?)</summary>", page)[0]
    assert re.sub("<[^>]*>", "|", summary) == "|53| need attention|50 expiring||3 failed|"
    assert "… and 3 more." in page


async def test_unreadable_records_are_listed_in_order(open_gallery: OpenGallery, store: ObjectStore) -> None:
    for name in "hgfedcba":
        await store.put(f"ledger/broken-{name}.json", b"{")
    async with open_gallery() as gallery:
        page = (await gallery.get("/")).text
    assert "8 records cannot be read: broken-a, broken-b, broken-c, broken-d, broken-e." in page


async def test_unset_length_and_shape_are_shown_as_default(open_gallery: OpenGallery, store: ObjectStore) -> None:
    await put_generations(
        store, make_generation("kite", model="kling-2-6", options={"sound": True}, state=State.SUBMITTED)
    )
    async with open_gallery() as gallery:
        page = (await gallery.get("/k/kite")).text
    assert "<dd>default length, default shape</dd>" in page


def make_items(*generations: Generation) -> list[Item]:
    return [Item(item, f"{item.key}\n{item.request.prompt}".casefold()) for item in generations]


ITEMS = make_items(
    make_generation("spring-a", "A red Kite", batch="spring", tags=["hero"]),
    make_generation("spring-b", "A blue kite", batch="spring", at=NOW - timedelta(days=3)),
    make_generation("teapot", "Teapot", model="kling-2-6", duration=5, options={"sound": True}, state=State.FAILED),
)


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({}, ["teapot", "spring-a", "spring-b"]),
        ({"q": "KITE red"}, ["spring-a"]),
        ({"q": "teap"}, ["teapot"]),
        ({"state": "failed"}, ["teapot"]),
        ({"state": "nonsense"}, ["teapot", "spring-a", "spring-b"]),
        ({"model": "kling-2-6"}, ["teapot"]),
        ({"tag": "hero"}, ["spring-a"]),
        ({"batch": "spring"}, ["spring-a", "spring-b"]),
        ({"since": "2026-03-10"}, ["teapot", "spring-a"]),
        ({"until": "2026-03-09"}, ["spring-b"]),
        ({"since": "yesterday", "page": "-1"}, ["teapot", "spring-a", "spring-b"]),
        ({"batch": "spring", "q": "blue", "since": "2026-03-01"}, ["spring-b"]),
    ],
)
def test_filters_select_matching_items(query: dict[str, str], keys: list[str]) -> None:
    assert [item.key for item in Filters.parse(query).of(ITEMS)] == keys


def test_menus_list_existing_values_with_counts() -> None:
    options = menus(ITEMS)
    assert options["states"] == [("archived", 2), ("failed", 1)]
    assert options["tags"] == [("hero", 1)]
    assert options["batches"] == [("spring", 2)]


def test_items_that_need_a_decision_are_listed_with_their_commands() -> None:
    old = NOW - timedelta(days=13)
    generations = [
        make_generation("fine"),
        make_generation("refused", state=State.FAILED),
        make_generation("refused-long-ago", state=State.FAILED, at=NOW - timedelta(days=30)),
        make_generation("unclear", state=State.UNCONFIRMED),
        make_generation("late", state=State.SUBMITTED, at=old),
        make_generation("on-its-way", state=State.SUBMITTED),
    ]
    shown = notices(generations, " --archive other", NOW)
    assert [(item.key, item.why) for item in shown] == [
        ("late", "expiring"), ("unclear", "unconfirmed"), ("refused", "failed")
    ]  # fmt: skip
    commands = [
        text for item in shown for step in item.steps for text, code in step if code and text.startswith("sora")
    ]
    assert "sora resolve unclear --resubmit --archive other" in commands
    assert "sora collect --archive other" in commands


@pytest.mark.parametrize(("state", "submitted"), [(State.UNCONFIRMED, False), (State.SUBMITTED, True)])
def test_expiring_notice_says_submitted_only_for_submitted_video(state: State, submitted: bool) -> None:
    (notice,) = notices([make_generation("late", state=state, at=NOW - timedelta(days=13))], "", NOW)
    assert notice.why == "expiring"
    assert ("submitted" in notice.message, "clear answer" in notice.message) == (submitted, not submitted)


def test_sentence_is_split_at_commands() -> None:
    assert pieces("Run `sora x`, or wait.") == [("Run ", False), ("sora x", True), (", or wait.", False)]


async def test_monthly_spend_counts_every_attempt_that_may_be_paid(
    open_gallery: OpenGallery, store: ObjectStore
) -> None:
    first = datetime(2026, 3, 1, tzinfo=UTC)
    generations = [
        make_generation("a", price=Decimal("0.40")),
        make_generation("b", price=Decimal("0.40"), state=State.UNCONFIRMED),
        make_generation("c", price=Decimal("9"), at=first - timedelta(seconds=1)),
        make_generation("d", price=Decimal("1"), at=first),
        make_generation("e"),
    ]
    async with open_gallery() as gallery:
        assert 'class="spend"' not in (await gallery.get("/")).text
    await put_generations(store, *generations)
    async with open_gallery() as gallery:
        assert "<b>1.80 USD</b>" in (await gallery.get("/")).text


def test_generate_command_is_quoted_for_the_shell() -> None:
    generation = make_generation(
        "kite", "--it's $HOME `x`\n", duration=8, aspect_ratio="portrait", tags=["a b"],
        image_urls=["https://example.com/a.jpg"], remove_watermark=False,
    )  # fmt: skip
    assert generate_command(generation, " --archive other") == (
        "sora generate --duration 8 --portrait --image https://example.com/a.jpg "
        "--tag 'a b' --keep-watermark --archive other -- '--it'\"'\"'s $HOME `x`\n'"
    )


def test_generate_command_keeps_fallback_models_and_option_types() -> None:
    options = {"sound": True, "negative_prompt": "5", "mood": "très gai"}
    generation = make_generation(
        "kite", model="kling-2-6", duration=5, options=options, fallback_models=["wan-2-6", "veo-3-1"]
    )
    words = shlex.split(generate_command(generation, ""))
    assert [word for name, word in pairwise(words) if name == "--fallback-model"] == ["wan-2-6", "veo-3-1"]
    assert dict(_option(word) for name, word in pairwise(words) if name == "--option") == options


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red kite over the dunes at dusk", "kite-a-red-kite-over-the-dunes.mp4"),
        ('../../etc "quoted"\r\nX: y', "kite-etc-quoted-x-y.mp4"),
        ("مرحبا", "kite.mp4"),
        ("x" * 500, f"kite-{'x' * 95}.mp4"),
    ],
)
def test_download_name_is_safe_and_descriptive(prompt: str, name: str) -> None:
    generation = make_generation("kite", prompt)
    assert generation.video is not None
    assert download_name(generation, generation.video) == name
