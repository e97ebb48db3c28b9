"""The login: sessions, their end, guesses, and where no password is allowed."""

import pytest
from pydantic import SecretStr, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from blocks import VideoArchive
from deployments.connection import SetupError
from deployments.gallery.access import COOKIE, MOST_WRONG, SESSION_SECONDS, WRONG_SECONDS, Access, TooManyError
from deployments.gallery.app import check_password
from tests.deployments.gallery.shown import GUARDED, PASSWORD, SECRET, OpenGallery


def block(**fields: object) -> VideoArchive:
    return VideoArchive(endpoint="h:1", access_key="a", secret_key=SecretStr("s"), **fields)


def asking(cookie: str) -> Request:
    return Request({"type": "http", "headers": [(b"cookie", f"{COOKIE}={cookie}".encode())], "query_string": b""})


def session(access: Access) -> str:
    response = Response()
    access.log_in(response)
    return response.headers["set-cookie"].partition("=")[2].partition(";")[0]


async def test_a_path_of_the_public_url_is_found_whether_or_not_a_proxy_removes_it(open_gallery: OpenGallery) -> None:
    async with open_gallery(**{**GUARDED, "gateway_url": "https://example.com/vid%C3%A9os%20x/"}) as gallery:
        for path in ("/vid%C3%A9os%20x/health", "/health"):
            assert (await gallery.get(path)).status_code == 200
        page = await gallery.get("/vid%C3%A9os%20x/")
    assert 'action="/vid%C3%A9os%20x/login"' in page.text


async def test_a_login_opens_the_gallery_until_the_logout(open_gallery: OpenGallery) -> None:
    async with open_gallery(host="videos.example.com", **GUARDED) as gallery:
        closed = await gallery.get("/")
        wrong = await gallery.client.post("/login", data={"password": "wrong"})
        right = await gallery.client.post("/login", data={"password": PASSWORD})
        cookie = right.headers["set-cookie"]
        inside = await gallery.get("/", headers={"Cookie": cookie.partition(";")[0]})
        out = await gallery.client.post("/logout")
    assert (closed.status_code, wrong.status_code, right.status_code, inside.status_code) == (401, 401, 303, 200)
    assert "Log in" in closed.text
    assert "Wrong password." in wrong.text
    assert (right.headers["location"], out.headers["location"]) == ("/", "/")
    for word in ("HttpOnly", "SameSite=lax", "Secure", "Path=/"):
        assert word in cookie
    assert PASSWORD not in cookie
    assert "Max-Age=0" in out.headers["set-cookie"]


def test_a_session_ends_by_itself_and_with_a_new_password_or_secret() -> None:
    clock = [1_000.0]
    first = Access(block(**GUARDED), now=lambda: clock[0])
    cookie = session(first)
    assert first.may_see_all(asking(cookie))
    for changed in ({"gateway_password": SecretStr("another password")}, {"gateway_secret": SecretStr("x" * 16)}):
        assert not Access(block(**{**GUARDED, **changed}), now=lambda: clock[0]).may_see_all(asking(cookie))
    later = str(int(cookie.partition(".")[0]) + 999)
    assert not first.may_see_all(asking(f"{later}.{cookie.partition('.')[2]}"))
    clock[0] += SESSION_SECONDS + 1
    assert not first.may_see_all(asking(cookie))


@pytest.mark.parametrize("cookie", ["", ".", "x", "1", "é.é", "1.2.3", "-1.a", " "])
def test_a_cookie_that_is_not_ours_opens_nothing(cookie: str) -> None:
    assert not Access(block(**GUARDED)).may_see_all(asking(cookie))


def test_guesses_are_limited_and_then_even_the_right_one_waits() -> None:
    clock = [0.0]
    access = Access(block(**GUARDED), monotonic=lambda: clock[0])
    assert [access.is_password("guess") for _ in range(MOST_WRONG)] == [False] * MOST_WRONG
    with pytest.raises(TooManyError):
        access.is_password(PASSWORD)
    clock[0] += WRONG_SECONDS + 1
    assert access.is_password(PASSWORD)


def test_a_password_that_looks_like_a_token_opens_the_gallery_and_a_token_is_no_guess() -> None:
    def bearing(text: str) -> Request:
        return Request({"type": "http", "headers": [(b"authorization", f"Bearer {text}".encode())]})

    password = "0123456789abcdef" * 4
    access = Access(block(**{**GUARDED, "gateway_password": SecretStr(password)}))
    assert [access.may_see_all(bearing("f" * 64)) for _ in range(MOST_WRONG + 1)] == [False] * (MOST_WRONG + 1)
    assert access.may_see_all(bearing(password))
    # What no token can be counts as a guess, however long it is.
    assert not any(access.may_see_all(bearing("a long password? " * 3 + "x" * 13)) for _ in range(MOST_WRONG))
    assert not access.may_see_all(bearing(password))


async def test_a_form_that_is_too_large_is_refused(open_gallery: OpenGallery) -> None:
    async with open_gallery(**GUARDED) as gallery:
        assert (await gallery.client.post("/login", content=b"password=" + b"x" * 10_000)).status_code == 413


@pytest.mark.parametrize("host", ["videos.evil.example", "10.0.0.1", "localhost.evil.example"])
async def test_without_a_password_other_names_are_refused(open_gallery: OpenGallery, host: str) -> None:
    """A page elsewhere could have its own name lead to this machine, and read the gallery in a visitor's browser."""
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
async def test_the_name_is_that_of_the_header_and_never_the_servers_own(
    open_gallery: OpenGallery, header: str, status: int
) -> None:
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
def test_beyond_this_machine_there_is_a_password(host: str, fields: dict[str, object], *, allowed: bool) -> None:
    if allowed:
        check_password(host, block(**fields), "default")
        return
    with pytest.raises(SetupError, match="MINIO_GATEWAY_PASSWORD"):
        check_password(host, block(**fields), "default")


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
def test_the_block_refuses_what_would_not_guard(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word) as refused:
        block(**fields)
    assert "me:pw" not in str(refused.value)


def test_a_token_is_of_one_video_and_of_one_secret() -> None:
    one = block(**GUARDED)
    other = block(**{**GUARDED, "gateway_secret": SecretStr("y" * 20)})
    assert len({one.gateway_token("a"), one.gateway_token("b"), other.gateway_token("a")}) == 3
    assert one.gateway_link("a", "videos/2026/03/10/a/video.mp4") == (
        f"https://videos.example.com/v/a/video.mp4?t={one.gateway_token('a')}"
    )
    assert one.gallery_link("a") == "https://videos.example.com/k/a"
    assert block().gateway_link("a", "video.mp4") is None
    assert block().gallery_link("a") is None
