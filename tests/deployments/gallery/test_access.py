"""The gallery's login: sessions and their expiry, wrong passwords, and when no password is needed."""

import pytest
from pydantic import SecretStr, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from blocks import VideoArchive
from deployments.connection import SetupError
from deployments.gallery.access import COOKIE, MOST_WRONG, SESSION_SECONDS, WRONG_SECONDS, Access, TooManyError
from deployments.gallery.app import check_password
from tests.deployments.gallery.sample_records import GUARDED, PASSWORD, SECRET, OpenGallery


def make_block(**fields: object) -> VideoArchive:
    return VideoArchive(endpoint="h:1", access_key="a", secret_key=SecretStr("s"), **fields)


def request_with_cookie(cookie: str) -> Request:
    return Request({"type": "http", "headers": [(b"cookie", f"{COOKIE}={cookie}".encode())], "query_string": b""})


def session_cookie(access: Access) -> str:
    response = Response()
    access.log_in(response)
    return response.headers["set-cookie"].partition("=")[2].partition(";")[0]


async def test_public_url_path_works_with_and_without_a_proxy_that_strips_it(open_gallery: OpenGallery) -> None:
    async with open_gallery(**{**GUARDED, "gateway_url": "https://example.com/vid%C3%A9os%20x/"}) as gallery:
        for path in ("/vid%C3%A9os%20x/health", "/health"):
            assert (await gallery.get(path)).status_code == 200
        page = await gallery.get("/vid%C3%A9os%20x/")
    assert 'action="/vid%C3%A9os%20x/login"' in page.text


async def test_login_grants_access_until_logout(open_gallery: OpenGallery) -> None:
    async with open_gallery(host="videos.example.com", **GUARDED) as gallery:
        logged_out = await gallery.get("/")
        wrong = await gallery.client.post("/login", data={"password": "wrong"})
        right = await gallery.client.post("/login", data={"password": PASSWORD})
        cookie = right.headers["set-cookie"]
        logged_in = await gallery.get("/", headers={"Cookie": cookie.partition(";")[0]})
        out = await gallery.client.post("/logout")
    assert (logged_out.status_code, wrong.status_code, right.status_code, logged_in.status_code) == (401, 401, 303, 200)
    assert "Log in" in logged_out.text
    assert "Wrong password." in wrong.text
    assert (right.headers["location"], out.headers["location"]) == ("/", "/")
    for word in ("HttpOnly", "SameSite=lax", "Secure", "Path=/"):
        assert word in cookie
    assert PASSWORD not in cookie
    assert "Max-Age=0" in out.headers["set-cookie"]


def test_session_expires_and_ends_when_password_or_secret_changes() -> None:
    clock = [1_000.0]
    first = Access(make_block(**GUARDED), now=lambda: clock[0])
    cookie = session_cookie(first)
    assert first.may_see_all(request_with_cookie(cookie))
    for changed in ({"gateway_password": SecretStr("another password")}, {"gateway_secret": SecretStr("x" * 16)}):
        assert not Access(make_block(**{**GUARDED, **changed}), now=lambda: clock[0]).may_see_all(
            request_with_cookie(cookie)
        )
    later = str(int(cookie.partition(".")[0]) + 999)
    assert not first.may_see_all(request_with_cookie(f"{later}.{cookie.partition('.')[2]}"))
    clock[0] += SESSION_SECONDS + 1
    assert not first.may_see_all(request_with_cookie(cookie))


@pytest.mark.parametrize("cookie", ["", ".", "x", "1", "é.é", "1.2.3", "-1.a", " "])
def test_invalid_cookie_grants_no_access(cookie: str) -> None:
    assert not Access(make_block(**GUARDED)).may_see_all(request_with_cookie(cookie))


def test_right_password_also_waits_after_too_many_guesses() -> None:
    clock = [0.0]
    access = Access(make_block(**GUARDED), monotonic=lambda: clock[0])
    assert [access.is_password("guess") for _ in range(MOST_WRONG)] == [False] * MOST_WRONG
    with pytest.raises(TooManyError):
        access.is_password(PASSWORD)
    clock[0] += WRONG_SECONDS + 1
    assert access.is_password(PASSWORD)


def test_token_is_not_counted_as_a_guess_even_if_password_looks_like_one() -> None:
    def request_with_bearer(text: str) -> Request:
        return Request({"type": "http", "headers": [(b"authorization", f"Bearer {text}".encode())]})

    password = "0123456789abcdef" * 4
    access = Access(make_block(**{**GUARDED, "gateway_password": SecretStr(password)}))
    assert [access.may_see_all(request_with_bearer("f" * 64)) for _ in range(MOST_WRONG + 1)] == [False] * (
        MOST_WRONG + 1
    )
    assert access.may_see_all(request_with_bearer(password))
    # A text that cannot be a token counts as a guess, however long it is.
    assert not any(
        access.may_see_all(request_with_bearer("a long password? " * 3 + "x" * 13)) for _ in range(MOST_WRONG)
    )
    assert not access.may_see_all(request_with_bearer(password))


async def test_oversized_login_form_is_rejected(open_gallery: OpenGallery) -> None:
    async with open_gallery(**GUARDED) as gallery:
        assert (await gallery.client.post("/login", content=b"password=" + b"x" * 10_000)).status_code == 413


@pytest.mark.parametrize("host", ["videos.evil.example", "10.0.0.1", "localhost.evil.example"])
async def test_other_hosts_are_rejected_without_a_password(open_gallery: OpenGallery, host: str) -> None:
    """DNS rebinding: another site could point its name to this machine and read the gallery in a visitor's browser."""
    async with open_gallery(host=host) as gallery:
        for path in ("/", "/v/kite/video.mp4", "/health"):
            assert (await gallery.get(path)).status_code == 421


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 421),
        ("[", 421),
        ("a{b.evil.example", 421),
        ("evil.example:99999", 421),
        ("localhost.evil.example:80", 421),
        ("LOCALHOST:8720", 200),
        ("127.0.0.1:8720", 200),
        ("[::1]:8720", 200),
        ("gallery.localhost", 200),
    ],
)
async def test_host_check_uses_the_host_header(open_gallery: OpenGallery, header: str, status: int) -> None:
    async with open_gallery(host="127.0.0.1") as gallery:
        assert (await gallery.get("/health", headers={"Host": header})).status_code == status


@pytest.mark.parametrize(
    ("host", "fields", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("localhost", {"gateway_url": "http://127.0.0.1:8720", "gateway_secret": SecretStr(SECRET)}, True),
        ("127.0.0.1", {"gateway_url": "https://v.example.com", "gateway_secret": SecretStr(SECRET)}, False),
        ("0.0.0.0", {}, False),  # noqa: S104
        ("192.0.2.1", {}, False),
        ("0.0.0.0", {"gateway_password": SecretStr(PASSWORD)}, True),  # noqa: S104
        ("127.0.0.1", GUARDED, True),
    ],
)
def test_password_is_required_beyond_localhost(host: str, fields: dict[str, object], *, allowed: bool) -> None:
    if allowed:
        check_password(host, make_block(**fields), "default")
        return
    with pytest.raises(SetupError, match="MINIO_GATEWAY_PASSWORD"):
        check_password(host, make_block(**fields), "default")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"gateway_url": "https://v.example.com"}, "gateway_secret"),
        ({"gateway_url": "v.example.com", "gateway_secret": SecretStr(SECRET)}, "gateway_url"),
        ({"gateway_url": "https://me:pw@v.example.com", "gateway_secret": SecretStr(SECRET)}, "gateway_url"),
        ({"gateway_url": "https://v.example.com/?a=b", "gateway_secret": SecretStr(SECRET)}, "gateway_url"),
        ({"gateway_secret": SecretStr("short")}, "16 characters"),
        ({"gateway_password": SecretStr("short")}, "12 characters"),
    ],
)
def test_block_rejects_weak_or_incomplete_gateway_settings(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word) as rejected:
        make_block(**fields)
    assert "me:pw" not in str(rejected.value)


def test_token_is_bound_to_one_video_and_one_secret() -> None:
    one = make_block(**GUARDED)
    other = make_block(**{**GUARDED, "gateway_secret": SecretStr("y" * 20)})
    assert len({one.gateway_token("a"), one.gateway_token("b"), other.gateway_token("a")}) == 3
    assert one.gateway_link("a", "videos/2026/03/10/a/video.mp4") == (
        f"https://videos.example.com/v/a/video.mp4?t={one.gateway_token('a')}"
    )
    assert one.gallery_link("a") == "https://videos.example.com/k/a"
    assert make_block().gateway_link("a", "video.mp4") is None
    assert make_block().gallery_link("a") is None
