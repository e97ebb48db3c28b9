"""Hypothesis strategies for replies: near-valid envelopes, pages and junk, with secrets in them, and raw bytes."""

import hashlib
import json
import re
from typing import Any, Final
from urllib.parse import quote

from hypothesis import strategies as st

from .oracle import REJECTION_CODES

TELLTALES: Final = tuple(hashlib.sha256(name).hexdigest()[:10] for name in (b"key", b"signature", b"token"))
"""What must not appear in any text: a part of the API key, of a signature, of a callback's token. Computed, because
Hypothesis also tries the literals that it finds in this file, and on their own they are not secrets."""
KEY: Final = f"sk/{TELLTALES[0]}+AB=="
SIGNED: Final = f"https://files.example.com/v.mp4?X-Amz-Signature={TELLTALES[1]}&b=2"
CALLBACK: Final = f"https://callbacks.example.com/apixo/kite/{TELLTALES[2]}"

WHOLE_SECRETS: Final = (
    re.compile(rf"sk\\*(/|%2[fF]){TELLTALES[0]}(\+|%2[bB])AB(==|%3[dD]%3[dD])"),
    re.compile(rf"https?(:|%3a)[^\s\"<>?]{{0,40}}(\?|%3f|\\+u003f)X-Amz-Signature(=|%3d){TELLTALES[1]}", re.IGNORECASE),
    re.compile(re.escape(CALLBACK)),
)
"""What complete secrets look like. A fragment left by a cut cannot be recognized."""


def secrets_in(content: bytes) -> list[str]:
    """What must not be shown of a reply: each telltale that occurs in it only as part of a complete secret."""
    body = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[-1]
    readings = [content.decode("latin-1"), body.decode(json.detect_encoding(body), "replace")]
    held = [
        (telltale, [telltale in whole.sub("", text) for text in readings if telltale in text])
        for telltale, whole in zip(TELLTALES, WHOLE_SECRETS, strict=True)
    ]
    return [telltale for telltale, bare in held if bare and not any(bare)]


secrets = st.sampled_from(
    [
        KEY,
        f"Bearer {KEY}",
        SIGNED,
        SIGNED.replace("https", "HTTPS"),
        CALLBACK,
        SIGNED.replace("/", "\\/"),
        quote(SIGNED, safe=""),
    ]
)
texts = st.text(max_size=20) | secrets | st.tuples(st.text(max_size=5), secrets, st.text(max_size=5)).map("".join)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30), 2**53 + 1, 1e308])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
task_names = st.sampled_from(["taskId", "taskId", "taskid", "TaskID", "task_id"])
codes = st.sampled_from([200, 200, 400, 401, 429, 500, 0, -400, 4000, "200", "400", 400.0, True, None]) | values
tasks = st.sampled_from(["task_1", " task_1 ", "", "null", 12345678, None, "x" * 201]) | values
url_lists = st.lists(
    st.sampled_from([SIGNED, "https://files.example.com/2.mp4", "", "  ", 7, None]) | values, max_size=3
)
results = (
    st.sampled_from(["{", "null", "[]", '{"resultUrls": {}}', "", '{"resultUrls": [', "NaN", "[" * 100_000])
    | url_lists.map(lambda urls: json.dumps({"resultUrls": urls}))
    | url_lists.map(lambda urls: {"resultUrls": urls})
    | values.map(json.dumps)
    | values
)
states = st.sampled_from(
    ["pending", "processing", "success", "success", "failed", "failed", "queued_v2", 3, None, "SUCCESS", " Success "]
) | st.sampled_from(["completed", "fail", "Failed", "processing_r2", "expired"])
fail_codes = st.sampled_from(["CONTENT_VIOLATION", "INVALID_IMAGE_URL", "SOMETHING_NEW", "\ud800"]) | values
datas = (
    st.none()
    | st.fixed_dictionaries({"taskId": tasks})
    | st.fixed_dictionaries({"taskId": st.just("task_1"), "state": states, "resultJson": results})
    | st.fixed_dictionaries({"taskId": st.just("task_1"), "state": states, "failCode": fail_codes, "failMsg": values})
    | st.fixed_dictionaries(
        {},
        optional={
            "taskId": tasks, "state": states, "resultJson": results, "failCode": fail_codes, "failMsg": values,
            "createTime": values, "costTime": values, "task_id": values, "result_urls": values, "fail_code": values,
        },
    )
    | values
)  # fmt: skip
fields = st.lists(
    st.tuples(st.just("code"), codes)
    | st.tuples(st.just("message"), texts | values)
    | st.tuples(st.just("data"), datas)
    | st.tuples(task_names, tasks)
    | st.tuples(st.text(max_size=8), values),
    max_size=6,
)
good = st.tuples(st.sampled_from([200, 200, *sorted(REJECTION_CODES), 500]), texts, datas).map(
    lambda parts: list(zip(("code", "message", "data"), parts, strict=True))
)


def to_json(pairs: list[tuple[str, Any]]) -> str:
    """An object as JSON, with duplicate names."""
    return "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}"


def escaped(text: str) -> str:
    """The same JSON, with some characters escaped as in \\u0041."""
    return text.replace("Id", "\\u0049d").replace("?", "\\u003f")


@st.composite
def envelopes(draw: st.DrawFn) -> bytes:
    """A near-valid envelope, possibly damaged in transit."""
    text = to_json(draw(good | fields))
    how = draw(
        st.sampled_from(["as it is"] * 5 + ["escaped", "utf-16", "bom", "cut", "twice", "wrapped", "deep", "mutated"])
    )
    match how:
        case "escaped":
            text = escaped(text)
        case "bom":
            text = "\ufeff" + text
        case "cut":
            text = text[: draw(st.integers(0, len(text)))]
        case "twice":
            text += to_json(draw(good))
        case "wrapped":
            text = f"[{text}]"
        case "deep":
            text = text[:-1] + ', "deep": ' + "[" * (levels := draw(st.sampled_from([50, 900, 100_000]))) + "]" * levels
            text += "}"
        case "mutated":
            return mutated(draw, text.encode("utf-8", "replace"))
    return text.encode("utf-16-le" if how == "utf-16" else "utf-8", "replace")


def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few bytes left out, doubled or replaced, also with invalid UTF-8."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = draw(st.integers(begin, min(begin + 8, len(content))))
        put = draw(st.sampled_from([b"", content[begin:end] * 2, b"\xff", b"\xed\xa0\x80", b"\0", b'"', b"4", b"}"]))
        content = content[:begin] + put + content[end:]
    return content


pages = st.tuples(st.sampled_from(["<html>", "", "Error: "]), texts, st.sampled_from(["</html>", ""])).map(
    lambda parts: "".join(parts).encode("utf-8", "replace")
)
bodies = envelopes() | pages | st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode())
statuses = st.sampled_from(
    [200, 200, 200, 201, 204, 302, 307, 400, 400, 401, 403, 404, 429, 429, 500, 502, 503]
) | st.integers(100, 599)
dates = st.sampled_from(
    ["Fri, 31 Dec 9999 23:59:59 GMT", "Wed, 21 Oct 2015 07:28:00 -0000", "Mon, 32 Jan 2026 99:00:00 +9999"]
)
waits = st.sampled_from(["1", "-1", "1e309", "nan", "١٢", "9" * 5000, "0x10"]) | dates | st.text(max_size=20)
locations = st.sampled_from(["https:\\/\\/h.example\\/v", "https:v", "http://[", "//", "\x80", "", SIGNED, "/again"])
headers = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "set-cookie", "content-type", "x-echo"]),
    waits | texts,
    max_size=4,
) | st.fixed_dictionaries({"location": locations | texts})
encodings = st.sampled_from([None] * 8 + ["gzip", "deflate", "br", "zstd", "identity", "rot13", "gzip, gzip"])


status_lines = st.sampled_from(
    [
        b"HTTP/1.1 200 OK", b"HTTP/1.1 400 Bad Request", b"HTTP/1.1 429", b"HTTP/1.0 200 OK", b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 999 -", b"HTTP/2 200", b"ICY 200 OK", KEY.encode(),
        SIGNED.encode(), CALLBACK.encode(), b"HTTP/1.1 400 " + KEY.encode(), b"HTTP/1.1 400 " + SIGNED.encode(), b"",
    ]
)  # fmt: skip
wire_headers = st.lists(
    st.sampled_from(
        [
            b"content-length: 5", b"content-length: 0", b"content-length: -1", b"content-length: 9999999999",
            b"content-length: 5, 6", b"transfer-encoding: chunked", b"transfer-encoding: gzip",
            b"content-encoding: gzip", b"connection: keep-alive", b"retry-after: 5",
            b"location: " + SIGNED.encode(), b"x-echo: " + KEY.encode(), b"set-cookie: s=\xe9",
            b"no colon", b"no colon " + KEY.encode(), b"no colon " + SIGNED.encode(), b"no colon " + CALLBACK.encode(),
            b" folded: yes", b"bad name: 1", b"x: \x00\xff",
        ]
    ),
    max_size=4,
)  # fmt: skip
chunks = st.sampled_from([b"", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffffffffffffff\r\n", b"5\r\nhel"])
raw_replies = st.binary(max_size=200) | st.tuples(
    status_lines, wire_headers, envelopes() | chunks | st.binary(max_size=40)
).map(lambda parts: b"\r\n".join([parts[0], *parts[1], b"", b""]) + parts[2])
