"""Values as people and programs write them: which are normalized, and which are left unchanged to be rejected later."""

import contextlib
import time
from typing import Any

import pytest

from flows.batch.cells import CellError, addresses, line_ends, normalize

A, B = "https://example.com/a.jpg", "https://example.com/b.png"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        *(("duration", text, 8) for text in ("8", " 8 ", "8.0", "8,0", "8s", "8 s", "8 sec", "8 Seconds", "8.0 s")),
        *(("duration", value, value) for value in ("08", "8.5", "+8", "8m", "0:08", "8 4", "", 8, True)),
        ("duration", 8.0, 8),
        *(("aspect_ratio", text, "portrait") for text in ("9:16", "Portrait ", "09:16", "9:16:00", "09:16:00")),
        *(("aspect_ratio", text, "landscape") for text in ("16:9", "16:09", "16:09:00", "Landscape")),
        *(("aspect_ratio", value, value) for value in ("1:1", "9/16", "9:16:30", "vertical", 9)),
        *(("mode", text, "text-to-video") for text in ("text-to-video", "Text to Video", "text_to_video ")),
        *(("remove_watermark", text, True) for text in ("TRUE", "yes", "1", "1.0", "WAHR", "VRAI")),
        *(("remove_watermark", text, False) for text in ("False", "no", "0", "0.0", "FALSCH", "FAUX")),
        *(("remove_watermark", value, value) for value in ("checked", "x", "on", 1, 0)),
        ("id", 7, "7"),
        ("id", " kite ", "kite"),
        ("id", "7.0", "7.0"),
        *(("id", value, value) for value in (7.0, True, "Kite")),
        *(
            ("not_before", text, "2026-03-01")
            for text in (
                " 2026-03-01 ", "2026-03-01 00:00:00", "2026-03-01T00:00:00", "2026-03-01T00:00:00.000Z",
                "2026-03-01T00:00+00:00",
            )
        ),
        *(("not_before", text, text) for text in ("3/1/2026", "46082", "2026-03-01T01:00", "2026-03-01T00:00+01:00")),
        ("prompt", " 8.0 ", " 8.0 "),
        ("style", "8s", "8s"),
    ],
)  # fmt: skip
def test_unambiguous_value_is_normalized(field: str, value: Any, expected: Any) -> None:
    values, problems = normalize({field: value})
    assert problems == {}
    if value == "":
        assert values == {}
    else:
        assert values == {field: expected}
        assert type(values[field]) is type(expected)


def test_empty_values_are_dropped_but_blank_prompt_is_kept() -> None:
    fields = dict.fromkeys(("duration", "aspect_ratio", "image_urls", "mode", "remove_watermark", "id", "not_before"))
    assert normalize({"prompt": None} | fields) == ({}, {})
    assert normalize({"prompt": "A kite", "#owner": "Ann"}) == ({"prompt": "A kite"}, {})
    assert normalize({"prompt": " "} | dict.fromkeys(fields, " ")) == ({"prompt": " "}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (A, [A]),
        (f" {A} \n {B} ", [A, B]),
        (f"{A},{B}", [A, B]),
        (f"{A}, {B},", [A, B]),
        (f"{A}\uff0c{B}", [A, B]),
        (f"{A}\u3001{B}\u3001", [A, B]),
        (f"{A}\\n{B}", [A, B]),
        (f"{A}\\r\\n{B}", [A, B]),
        ("https://h.example/a\uff0cb.jpg", ["https://h.example/a\uff0cb.jpg"]),
        ("https://h.example/a.jpg?q=a+b", ["https://h.example/a.jpg?q=a+b"]),
        (f"{A};{B};", [A, B]),
        (f"{A} | {B}", [A, B]),
        (f"{A},\r\n{B}", [A, B]),
        (f"{A}?v=1,{B}?v=2", [f"{A}?v=1", f"{B}?v=2"]),
        (f"{A},HTTPS://example.com/c.jpg", [A, "HTTPS://example.com/c.jpg"]),
        (f"{A},", [A]),
        # Single URLs that contain commas, as Cloudinary and imgix use them.
        *(
            (url, [url])
            for url in (
                "https://res.cloudinary.com/demo/image/upload/w_400,h_300,c_fill/sample.jpg",
                "https://x.imgix.net/a.jpg?rect=0,0,400,300&auto=format,compress",
                "https://example.com/a;v=2.jpg",
                "https://example.com/one,two.jpg",
            )
        ),
        ("a.jpg, b.jpg", ["a.jpg", "b.jpg"]),
        ("", []),
    ],
)
def test_urls_in_one_cell_are_split(text: str, expected: list[str]) -> None:
    assert addresses(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"{A},b.jpg",
        f"{A}+{B}",
        f"{A}\uff0cb.jpg",
        f"{A};uploads/b.webp",
        f"{A},//cdn.example.com/b.jpg",
        f"{A},www.example.com/b.jpg",
        f"{A},ftp://example.com/b.jpg",
        f"{B} {A}|c.png",
    ],
)
def test_ambiguous_separator_between_urls_is_rejected_with_advice(text: str) -> None:
    with pytest.raises(CellError, match="%2C") as raised:
        addresses(text)
    assert "example" not in str(raised.value)


@pytest.mark.parametrize("text", ["," * 130_000, f"{A}{',' * 130_000}x", f"{A},x" * 13_000, " ;" * 65_000])
def test_cell_full_of_separators_is_read_quickly(text: str) -> None:
    began = time.process_time()
    with contextlib.suppress(CellError):
        addresses(text)
    assert time.process_time() - began < 2


def test_list_entry_with_several_urls_is_rejected() -> None:
    assert normalize({"image_urls": [A, B]}) == ({"image_urls": [A, B]}, {})
    assert normalize({"image_urls": []}) == ({"image_urls": []}, {})
    for entry in (f"{A},{B}", f"{A} {B}", f"{A}?v=1;{B}"):
        assert "Give each its own entry" in normalize({"image_urls": [entry]})[1]["image_urls"]


def test_line_endings_are_normalized() -> None:
    assert line_ends("a\r\nb\rc\nd\r\n\r\ne\n\r") == "a\nb\nc\nd\n\ne\n\n"


@pytest.mark.parametrize(
    "prompt",
    ["#NAME?", "#N/A", " #REF! ", "#VALUE!", "#ERROR!", "Loading...", "nan", "NULL", "None", "undefined",
     "{{ prompt }}", "${PROMPT}", "[object Object]", r"\N", "\x1a"],
)  # fmt: skip
def test_placeholder_for_missing_value_is_rejected_as_prompt(prompt: str) -> None:
    values, problems = normalize({"prompt": prompt, "duration": 4})
    assert "prompt" not in values
    assert "Enter the prompt" in problems["prompt"]


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            text.encode().decode("cp1252")
            for text in ("Café in Paris", "été", "Sébastien", "A kite \u2013 dunes", "20 °C", "a wave 🌊", "it\u2019s")
        ),
        "Caf\ufffd in Paris",
    ],
)
def test_prompt_with_garbled_letters_is_rejected(prompt: str) -> None:
    values, problems = normalize({"prompt": prompt})
    assert values == {}
    assert "save as UTF-8" in problems["prompt"]


@pytest.mark.parametrize("prompt", ["\u200b", " \u2060\n", "\ufeff", "\u00ad\u200d"])
def test_invisible_prompt_is_rejected(prompt: str) -> None:
    values, problems = normalize({"prompt": prompt})
    assert values == {}
    assert "invisible" in problems["prompt"]


@pytest.mark.parametrize("written", ["&amp;", "&AMP;", "&#38;", "&#x26;"])
def test_html_escaped_ampersand_in_url_is_rejected(written: str) -> None:
    for value in (f"{A}?w=1{written}h=2", [B, f"{A}?w=1{written}h=2"]):
        values, problems = normalize({"image_urls": value})
        assert values == {}
        assert "Write & instead" in problems["image_urls"]


@pytest.mark.parametrize(
    "prompt",
    [
        "“Zoë” — às três, NÃO", "Ça va? Déjà vu…", "日本の凧", "100 € für ½ Kilo", "Łódź", "CAFÉ\u2019S MENÜ… AMANHÃ…",
        "«Âge d\u2019or»", "MAÇÃ” e PÃO—só", "Ãµ", "a 🪁 at 20 °C",
        "None of the kites falls", "#1 of the fans", "-5 degrees", "A {{ on a wall",
    ],
)  # fmt: skip
def test_non_ascii_letters_and_words_resembling_placeholders_are_kept(prompt: str) -> None:
    assert normalize({"prompt": prompt}) == ({"prompt": prompt}, {})
