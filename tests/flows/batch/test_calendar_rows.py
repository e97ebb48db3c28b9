"""The rows of a batch: which are valid, how problems are reported, and which key a row gets."""

import json
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from apixo import VideoRequest
from flows.batch.calendar_rows import (
    ALLOWED,
    FIELDS,
    MAX_PROBLEMS,
    BadRow,
    BatchItem,
    Row,
    RowProblem,
    check_row,
    mark_duplicates,
    shown,
)
from flows.batch.cells import normalize
from flows.record.pipeline_errors import InvalidKeyError

IMAGE = "https://example.com/start.jpg"
SECRET = "hunter2"

PROBLEMS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["prompt: is missing"]),
    ({"prompt": ""}, ["prompt: must be text of 1 to 10,000"]),
    ({"prompt": " \t"}, ["prompt: is blank"]),
    ({"prompt": "x" * 10_001}, ["prompt: must be text of 1 to 10,000"]),
    ({"prompt": None}, ["prompt: is missing"]),
    ({"prompt": 7}, ["prompt: must be text"]),
    ({"prompt": "\ud800"}, ["prompt: must be text"]),
    ({"duration": "5"}, ["duration: must be 4, 8 or 12"]),
    ({"duration": True}, ["duration: must be 4, 8 or 12"]),
    ({"duration": 8.5}, ["duration: must be 4, 8 or 12"]),
    ({"duration": 5}, ["duration: must be 4, 8 or 12 with sora-2; the nearest is 4"]),
    (
        {"model": "kling-2-6", "duration": 8},
        ["duration: must be 5 or 10 with kling-2-6; the nearest is 10", "options.sound: is required by kling-2-6"],
    ),
    (
        {"model": "kling-2-6", "duration": "8 s", "options": {"sound": "yes"}},
        ["duration: must be 5 or 10 with kling-2-6; the nearest is 10", "options.sound: must be true or false"],
    ),
    ({"model": "a b", "duration": 10, "options": {"sound": True}}, ["model: must be a model's name"]),
    ({"model": "kling-2-6", "options": "sound"}, ["options: must be an object"]),
    ({"tags": ["a/b"]}, ["tags.0: must be at most 20 labels"]),
    ({"fallback_models": ["a b"]}, ["fallback_models.0: must be at most 5 model names"]),
    ({"duration": float("inf")}, ["duration: must be 4, 8 or 12"]),
    ({"aspect_ratio": "1:1"}, ["aspect_ratio: must be landscape or portrait with sora-2"]),
    ({"mode": "video"}, ["mode: must be text-to-video or image-to-video"]),
    ({"mode": "image-to-video"}, ["mode: 'image-to-video' needs at least one URL in image_urls"]),
    ({"mode": "text-to-video", "image_urls": [IMAGE]}, ["mode: 'text-to-video' does not support image_urls"]),
    ({"remove_watermark": "checked"}, ["remove_watermark: must be true or false"]),
    ({"remove_watermark": 1}, ["remove_watermark: must be true or false"]),
    ({"image_urls": 4}, ["image_urls: must be public"]),
    ({"image_urls": "a.jpg"}, ["image_urls.0: must be public"]),
    ({"image_urls": [IMAGE, "a b"]}, ["image_urls.1: must be public"]),
    ({"image_urls": ["no", 1]}, ["image_urls.0: must be", "image_urls.1: must be"]),
    ({"id": 7.0}, ["id: must be 1 to 91 lowercase"]),
    ({"id": True}, ["id: must be"]),
    ({"id": "a\nb"}, ["id: must be"]),
    ({"id": "März"}, ["id: must be"]),
    ({"id": "a/b"}, ["id: must be"]),
    ({"id": "a" * 92}, ["id: must be"]),
    ({"id": -3.5}, ["id: must be"]),
    ({"not_before": "1 March"}, ["not_before: must be a day written as YYYY-MM-DD"]),
    ({"not_before": "2026-02-30"}, ["not_before: must be a day"]),
    ({"not_before": "2026-03-01T00:00:01"}, ["not_before: must be a day"]),
    ({"not_before": "2026-02-28T23:00:00.000Z"}, ["not_before: must be a day"]),
    ({"not_before": "20260301"}, ["not_before: must be a day"]),
    ({"not_before": "２０２６-03-01"}, ["not_before: must be a day"]),  # noqa: RUF001 - look-alikes are the point
    ({"not_before": 20260301}, ["not_before: must be a day"]),
    ({"not_before": 1.5}, ["not_before: must be a day"]),
    ({"promt": "x"}, ["'promt': is not a field (did you mean prompt?)"]),
    ({"Prompt": "x"}, ["'Prompt': is not a field (did you mean prompt?)"]),
    ({"x" * 100_000: 1}, ["…': is not a field. Allowed are prompt, which is required, and model, duration"]),
]


def problems_of(row: Row | BadRow) -> list[str]:
    assert isinstance(row, BadRow), row
    return [f"{problem.field}: {problem.message}" for problem in row.problems]


@pytest.mark.parametrize(("fields", "expected"), PROBLEMS, ids=[str(fields)[:50] for fields, _ in PROBLEMS])
def test_a_problem_names_its_field_and_what_is_allowed(fields: dict[str, Any], expected: list[str]) -> None:
    row = check_row(7, ({"prompt": "A kite"} if fields else {}) | fields)
    assert row.line == 7
    problems = problems_of(row)
    assert len(problems) == len(expected)
    assert [text for text, words in zip(problems, expected, strict=True) if words not in text] == []
    assert max(map(len, problems)) < 600


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"duration": 5, "aspect_ratio": "square", "id": "A", "style": "noir"},
            {"prompt", "duration", "aspect_ratio", "id", "'style'"},
        ),
        # These come from validators of the whole item, which pydantic runs only if every field is valid.
        ({"prompt": " ", "duration": 5}, {"prompt", "duration"}),
        ({"prompt": " ", "mode": "image-to-video"}, {"prompt", "mode"}),
        ({"prompt": "", "mode": "image-to-video", "not_before": "?"}, {"prompt", "mode", "not_before"}),
        ({"": 1, "prompt": " "}, {"''", "prompt"}),
        # With an invalid image, the mode cannot be checked.
        ({"prompt": "A kite", "image_urls": ["no"], "mode": "image-to-video"}, {"image_urls.0"}),
    ],
)
def test_every_problem_of_a_row_is_reported(fields: dict[str, Any], expected: set[str]) -> None:
    row = check_row(1, fields)
    assert isinstance(row, BadRow)
    assert {problem.field for problem in row.problems} == expected
    assert len(row.problems) == len(expected)


def test_allowed_fields_are_listed_once_for_a_row_with_many_unknown_fields() -> None:
    problems = problems_of(check_row(1, {"prompt": "A kite", "colour": 1, "promt": 2, "sound": 3}))
    assert [problem.partition(":")[0] for problem in problems] == ["'colour'", "'promt'", "'sound'"]
    assert ["Allowed are" in problem for problem in problems] == [True, False, False]
    assert "did you mean prompt?" in problems[1]


def test_junk_row_reports_first_problems_and_counts_the_rest() -> None:
    problems = problems_of(check_row(1, {"prompt": "A kite", "image_urls": ["junk"] * 40_000}))
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1] == f": has {40_000 - MAX_PROBLEMS:,} more problems"


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{SECRET}@example.com/a.jpg",
        f"https://me:{SECRET}/x@example.com/a.jpg",  # urllib's own message repeats the "port"
        f"https://me:{SECRET}@exa℀mple.com/a.jpg",  # and here the whole host
        f"https://[{SECRET}]/a.jpg",
        f"{SECRET}://example.com/a.jpg",
        f"https://example.com/a b.jpg?token={SECRET}",
    ],
)
@pytest.mark.parametrize("field", [*FIELDS[:-1], "not_before", "name"])
def test_problems_never_repeat_a_url_from_any_field(url: str, field: str) -> None:
    for fields in ({field: [url]}, {field: url}, {url: 1}, {field: {url: url}}):
        row = check_row(1, {"prompt": "A kite"} | fields)
        if isinstance(row, BadRow):
            assert SECRET not in row.model_dump_json()
        else:
            assert field in ("prompt", "image_urls")  # a URL is valid here, and a space in it becomes %20


def test_untrusted_name_is_shortened_and_escaped() -> None:
    assert shown("x\u202e\n") == r"'x\u202e\n'"
    assert len(shown("x" * 1_000)) < 90


def test_each_field_lists_allowed_values_and_has_form_title_and_description() -> None:
    assert set(ALLOWED) == set(FIELDS)
    schema = BatchItem.model_json_schema()
    assert schema["title"] == "Batch item"
    for field in schema["properties"].values():
        assert field["title"][0].isupper()
        assert field["description"].endswith(".")
    assert {"type": "string", "format": "date"} in schema["properties"]["not_before"]["anyOf"]


def test_bad_row_keeps_its_id_if_the_id_is_valid() -> None:
    for row_id, expected in (("kite", "kite"), ("Kite", None), (7, "7"), (7.0, None), (None, None)):
        row = check_row(1, {"id": row_id, "duration": 5})
        assert isinstance(row, BadRow)
        assert row.id == expected


@pytest.mark.parametrize("day", [20260301, "20260301", datetime(2026, 3, 1), 0, True])  # noqa: DTZ001 - a naive datetime too
def test_item_rejects_days_that_pydantic_would_read_as_timestamps(day: Any) -> None:
    with pytest.raises(ValidationError, match="YYYY-MM-DD"):
        BatchItem(prompt="A kite", not_before=day)


@pytest.mark.parametrize("day", [date(2026, 3, 1), "2026-03-01"])
def test_not_before_accepts_date_or_iso_string(day: Any) -> None:
    item = BatchItem(prompt="A kite", not_before=day)
    assert item.not_before == date(2026, 3, 1)
    assert BatchItem.model_validate_json(item.model_dump_json()) == item


def test_item_request_equals_request_for_single_video() -> None:
    fields: dict[str, Any] = {"prompt": " A kite ", "duration": 8, "image_urls": [IMAGE], "remove_watermark": False}
    request = BatchItem(**fields, id="kite", not_before=date(2026, 3, 1)).request()
    assert type(request) is VideoRequest
    assert request == VideoRequest(**fields)


def test_key_contains_id_or_else_digest_of_request() -> None:
    assert BatchItem(prompt="A kite", id="kite").key("spring") == "spring-kite"
    # Pinned: with another digest, every known calendar would be paid for again.
    assert BatchItem(prompt="A kite").key("spring") == "spring-88736a2597"
    assert BatchItem(prompt="A kite", not_before=date(2026, 3, 1)).key("b") == BatchItem(prompt="A kite").key("b")
    assert BatchItem(prompt="A kite", mode="text-to-video", duration=4).key("b") == BatchItem(prompt="A kite").key("b")


def test_key_that_is_invalid_in_ledger_is_rejected() -> None:
    for batch_key in ("", "-", "Spring", "a" * 120):
        with pytest.raises(InvalidKeyError):
            BatchItem(prompt="A kite", id="kite-in-spring").key(batch_key)
    assert len(BatchItem(prompt="A kite", id="a" * 91).key("0" * 36)) == 128  # prefixed with a flow run's id


urls = st.from_regex(
    r"https?://[a-z]{1,8}\.[a-z]{2,3}(:80)?/[A-Za-z0-9%_.-]{0,9}(\?[a-z]=[a-z0-9]{1,5})?", fullmatch=True
)
prompts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)
items = st.builds(
    BatchItem,
    prompt=prompts.filter(lambda text: bool(text.strip()) and not normalize({"prompt": text})[1]),
    duration=st.sampled_from([4, 8, 12]),
    aspect_ratio=st.sampled_from(["landscape", "portrait"]),
    image_urls=st.lists(urls, max_size=3),
    remove_watermark=st.booleans(),
    id=st.none() | st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True),
    not_before=st.none() | st.dates(),
)


@settings(deadline=None)
@given(items, items)
def test_keys_are_equal_if_and_only_if_requests_are_equal(one: BatchItem, other: BatchItem) -> None:
    one, other = (item.model_copy(update={"id": None}) for item in (one, other))
    assert (one.key("b") == other.key("b")) is (one.request() == other.request())
    changed = one.model_copy(update={"duration": 12 if one.duration == 4 else 4})
    assert changed.key("b") != one.key("b")


@settings(deadline=None)
@given(items)
def test_item_dumped_to_json_is_a_good_row(item: BatchItem) -> None:
    assert check_row(3, json.loads(item.model_dump_json())) == Row(line=3, item=item)


names = st.sampled_from(FIELDS) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["4", " ", IMAGE]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(names, values, max_size=8))
def test_any_json_object_is_a_good_row_or_has_problems(fields: dict[str, Any]) -> None:
    row = check_row(1, fields)
    assert isinstance(row, Row) or row.problems


def rows_of(*items: BatchItem | BadRow) -> list[Row | BadRow]:
    return [
        Row(line=10 * number, item=item)
        if isinstance(item, BatchItem)
        else item.model_copy(update={"line": 10 * number})
        for number, item in enumerate(items, start=1)
    ]


def bad(row_id: str | None) -> BadRow:
    return BadRow(line=0, id=row_id, problems=(RowProblem(field="duration", message="must be 4"),))


KITE, BOAT = BatchItem(prompt="A kite"), BatchItem(prompt="A boat")


@pytest.mark.parametrize(
    ("items", "duplicates"),
    [
        ([KITE, BOAT], {}),
        ([KITE, BOAT, KITE, KITE], {30: "asks for the same video as line 10", 40: "same video as line 10"}),
        ([KITE, KITE.model_copy(update={"not_before": date(2026, 3, 1)})], {20: "asks for the same video as line 10"}),
        ([KITE, KITE.model_copy(update={"id": "b"}), KITE.model_copy(update={"id": "c"})], {}),
        (
            [KITE.model_copy(update={"id": "b"}), BOAT.model_copy(update={"id": "b"})],
            {20: "has the same id as line 10"},
        ),
        # A row without an id, whose key another row has as its id.
        ([KITE, BOAT.model_copy(update={"id": KITE.name()})], {20: "has the same id as line 10"}),
        ([BOAT.model_copy(update={"id": KITE.name()}), KITE], {20: "asks for the same video as line 10"}),
        # A bad row reserves its id until it is fixed.
        ([bad("b"), BOAT.model_copy(update={"id": "b"})], {20: "has the same id as line 10"}),
        ([BOAT.model_copy(update={"id": "b"}), bad("b")], {20: "has the same id as line 10"}),
        ([bad(None), bad(None)], {}),
    ],
)
def test_a_second_row_with_the_same_key_is_bad_and_names_the_first(
    items: list[BatchItem | BadRow], duplicates: dict[int, str]
) -> None:
    rows = rows_of(*items)
    marked = mark_duplicates(rows)
    for before, after in zip(rows, marked, strict=True):
        if after.line in duplicates:
            assert duplicates[after.line] in problems_of(after)[-1]
            assert "Give it an" in problems_of(after)[-1]
            assert not isinstance(before, BadRow) or set(problems_of(before)) < set(problems_of(after))
        else:
            assert after == before
    assert mark_duplicates(marked) == marked


@settings(deadline=None)
@given(st.lists(items, max_size=6).flatmap(lambda some: st.permutations([*some, *some])))
def test_no_two_good_rows_share_a_key(twice: list[BatchItem]) -> None:
    good = [row for row in mark_duplicates(rows_of(*twice)) if isinstance(row, Row)]
    assert len({row.item.key("b") for row in good}) == len(good) == len({item.key("b") for item in twice})
