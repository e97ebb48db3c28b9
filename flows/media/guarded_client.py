"""The guard for external URLs: decides which ones may be fetched, and provides a client that fetches only those.

Image and result URLs may be hostile. They may point at this machine, its network or a cloud's metadata service: by
name, by an odd spelling of an address, by a DNS answer that changes between check and use, or by a redirect. So the
client resolves a name once, checks *every* address, and connects only to an address that it has checked.
"""

import asyncio
import http.cookiejar
import os
import re
import socket
import ssl
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import metadata
from itertools import zip_longest
from urllib.parse import quote

import httpx

from apixo.network import UNTRUSTED, is_untrusted_certificate, proxy_for, trust
from apixo.urls import normalize_url
from flows.media.media_errors import DownloadError, ForbiddenUrlError, display_url
from flows.media.networks import is_address, is_allowed_address
from flows.media.repaired_http import RepairingTransport

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""``await resolve(host, port)`` returns every address of a host as text. OSError: it has none at the moment."""

MAX_URL_LENGTH = 2_000
"""Characters in a URL from a user. Browsers, proxies and the provider's own fetcher accept about this many."""

MAX_SIGNED_URL_LENGTH = 8_000
"""Characters in a URL from a host: one with a session token may exceed 2,000, and a paid video must not be lost
because of that. RFC 9110, 4.1: senders and recipients should support at least 8,000."""

MAX_REDIRECTS = 5
MAX_ADDRESSES_TRIED = 4  # a hostile name may have thousands of dead addresses, each costing a connect time-out
DEFAULT_TIMEOUT_SECONDS = 30.0

# Never forwarded to an external host, whatever code added them to a request.
_PRIVATE_HEADERS = frozenset({b"authorization", b"proxy-authorization", b"cookie"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")

# Ports of other protocols (mail, SSH, IRC, …): the "bad ports" of the Fetch standard, which browsers block too.
_BAD_PORTS = frozenset({
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
    532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
})  # fmt: skip


def check_url(url: str, *, max_length: int = MAX_URL_LENGTH) -> httpx.URL:
    """The parsed URL, if its text alone gives no reason to reject it. Pure: nothing is resolved.

    Its spelling does not matter: the normal form is checked, and then fetched (see `normalize_url`).

    Raises:
        ForbiddenUrlError: not http or https, contains a user name, has a missing or malformed host or another service's
            port, or is longer than max_length characters.
    """
    shown = display_url(url)
    url = normalize_url(url)
    if len(url) > max_length:
        raise ForbiddenUrlError(
            f"A URL of {len(url):,} characters is rejected; {max_length:,} are allowed: give a shorter one"
        )
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        # Not chained: the cause quotes the malformed part, which may be a password or a signature.
        raise ForbiddenUrlError(f"{shown} is not a readable URL: check its spelling") from None
    if parsed.scheme not in {"http", "https"}:
        raise ForbiddenUrlError(f"{shown} is rejected: only http and https URLs are allowed")
    if parsed.userinfo or "@" in url.partition("//")[2].partition("/")[0].partition("?")[0]:
        raise ForbiddenUrlError(f"{shown} is rejected: the URL must not contain a user name or password")
    if not _is_host(parsed.raw_host.decode("ascii")):
        raise ForbiddenUrlError(f"{shown} has no host or a malformed one: check its spelling")
    if parsed.port is not None and (parsed.port > 65_535 or parsed.port in _BAD_PORTS):
        raise ForbiddenUrlError(f"{shown} is rejected: port {parsed.port} is not a web server's")
    return parsed


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Every address that the system knows for a host, the preferred first. ``2130706433`` and ``0x7f.1`` work too."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class GuardedTransport(httpx.AsyncBaseTransport):
    """Resolves the host itself, rejects it unless every address is allowed, and connects to an address it has checked.

    The Host header and the TLS server name are still the URL's host, so the certificate is checked against the name
    although the connection goes to an address. Credentials and cookies are removed from every request.

    Args:
        allow_private_hosts: See `is_allowed_address`.
        resolve: Returns the addresses of a host.
        verify: The certificates to trust; None: the usual ones.

    If the environment sets a proxy, the proxy resolves the host's name. The host is still checked here if this machine
    can resolve it too; guarding what the proxy connects to is up to the proxy.

    Raises:
        ForbiddenUrlError: from a request, when the URL or one of its host's addresses is not allowed.
        DownloadError: from a request, when the host cannot be resolved.
    """

    def __init__(
        self, *, allow_private_hosts: bool, resolve: Resolve = resolve_host, verify: ssl.SSLContext | None = None
    ) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._resolve = resolve
        self._verify = verify or trust()
        # They keep no connections: httpx identifies one by its address, so two names with one address would share a
        # connection whose certificate was checked for only one of them.
        self._transports: dict[str | None, RepairingTransport] = {}
        """By proxy; None: direct."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = check_url(str(request.url), max_length=MAX_SIGNED_URL_LENGTH)
        host = url.raw_host.decode("ascii")
        headers = [(name, value) for name, value in request.headers.raw if name.lower() not in _PRIVATE_HEADERS]
        try:
            proxy = proxy_for(str(url), carries_key=False)
        except ValueError as error:
            raise DownloadError(str(error), retryable=False) from None
        timeout_seconds = request.extensions.get("timeout", {}).get("connect")
        targets, extensions = [url], request.extensions
        if proxy is None:
            addresses = await self._checked_addresses(url, host, timeout_seconds)
            targets = [url.copy_with(host=address) for address in _interleaved(addresses)[:MAX_ADDRESSES_TRIED]]
            # Not with a proxy: httpcore would use this name for TLS with the proxy itself.
            extensions = {**extensions, "sni_hostname": host.removesuffix(".")}
        else:
            with suppress(DownloadError):  # a network where only the proxy can resolve names is fine
                await self._checked_addresses(url, host, timeout_seconds)
        if proxy not in self._transports:
            self._transports[proxy] = RepairingTransport(verify=self._verify, proxy=proxy)
        failure: httpx.TransportError = httpx.ConnectError("no address to connect to")
        for target in targets:
            outbound = httpx.Request(
                request.method, target, headers=headers, stream=request.stream, extensions=extensions
            )
            try:
                return await _with_normal_location(await self._transports[proxy].handle_async_request(outbound), url)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()

    async def _checked_addresses(self, url: httpx.URL, host: str, timeout_seconds: float | None) -> list[str]:
        """Every address of the host, all of them allowed, in the resolver's order."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(timeout_seconds):
                found = [host] if is_address(host) else list(await self._resolve(host, port))
            checked = [
                (address, is_allowed_address(address, allow_private_hosts=self._allow_private_hosts))
                for address in found
            ]
        except (OSError, ValueError) as error:  # the resolver's IDNA codec raises UnicodeError, a ValueError
            raise DownloadError(
                f"{host} could not be resolved: check the name, try again later, or set HTTPS_PROXY if a proxy is the "
                "only way out of this network"
            ) from error
        if not checked:
            raise DownloadError(f"{host} has no address: check the name, or try again later")
        for address, allowed in checked:
            if not allowed:
                # One bad address is enough: the next lookup could return only that one.
                suggestion = (
                    "such an address is never contacted"
                    if self._allow_private_hosts or not is_allowed_address(address, allow_private_hosts=True)
                    else "give a public URL, or set allow_private_hosts for local use"
                )
                named = address if address == host else f"{host} has the address {address}, which"
                raise ForbiddenUrlError(f"{named} is not public: {suggestion}")
        return found


def user_agent() -> str:
    """This program's user agent: `sora-pipeline/0.1.0 (+<contact>) httpx/0.28.1`.

    Some hosts require a contact (see Wikimedia's user-agent policy). It is `SORA_CONTACT`, a URL or mail address, or
    else the first project URL in the package's metadata, if there is one.
    """
    name, contact = _name_and_contact()
    comment = f" (+{contact})" if contact else ""
    return f"{name}{comment} httpx/{httpx.__version__}"


def compatible_user_agent() -> str:
    """The user agent in the form that search engines use, for hosts that accept only what resembles a browser."""
    name, contact = _name_and_contact()
    return f"Mozilla/5.0 (compatible; {name}{f'; +{contact}' if contact else ''})"


def _name_and_contact() -> tuple[str, str]:
    about = metadata("sora-pipeline")
    pages = [page.partition(",")[2].strip() for page in about.get_all("Project-URL") or []]
    contact = os.environ.get("SORA_CONTACT", "").strip() or next(iter(pages), "")
    contact = "".join(letter for letter in contact if letter.isascii() and letter.isprintable() and letter not in "()")
    return f"{about['Name']}/{about['Version']}", contact


def guarded_client(
    *,
    allow_private_hosts: bool,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    resolve: Resolve = resolve_host,
    verify: ssl.SSLContext | None = None,
) -> httpx.AsyncClient:
    """A client for external URLs, for `open_stream`. It sends no credentials, keeps no cookies, follows no redirects.

    Args:
        allow_private_hosts: See `is_allowed_address`.
        timeout_seconds: For the lookup, for connecting, and for each wait for bytes. Not for the whole request.
        verify: The certificates to trust; None: the usual ones.

    Raises:
        ValueError: the environment names certificates that do not exist.
    """
    return httpx.AsyncClient(
        transport=GuardedTransport(allow_private_hosts=allow_private_hosts, resolve=resolve, verify=verify),
        trust_env=False,  # the transport reads the environment
        follow_redirects=False,
        timeout=timeout_seconds,
        # No connection is kept open: if a host sends no length, only the end of the connection ends the body.
        headers={"User-Agent": user_agent(), "Accept-Encoding": "identity", "Connection": "close"},
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
    )


@asynccontextmanager
async def open_stream(
    client: httpx.AsyncClient, url: str, *, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.Response]:
    """GETs a URL and yields the final answer, whatever its status, with its body still to be streamed.

    Redirects are followed here, each checked like the first URL, with the same headers. Errors of httpx while the body
    is read become DownloadErrors too.

    Raises:
        ForbiddenUrlError: the URL or a redirect is not allowed, or a redirect leads from https to http.
        DownloadError: the network failed (retryable), or there were more than MAX_REDIRECTS redirects (not retryable).
    """
    current = check_url(url, max_length=MAX_SIGNED_URL_LENGTH)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            response = await client.send(client.build_request("GET", current, headers=headers), stream=True)
            try:
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    yield response
                    return
            finally:
                await response.aclose()
            current = httpx.URL(response.headers["location"])  # the transport has made it absolute and checked it
    except (httpx.HTTPError, ssl.SSLError) as error:
        reason = str(error) or type(error).__name__
        if is_untrusted_certificate(error):
            raise DownloadError(
                f"{display_url(str(current))} cannot be fetched: {UNTRUSTED} ({reason})", retryable=False
            ) from error
        raise DownloadError(f"{display_url(str(current))} could not be fetched ({reason}): try again later") from error
    raise DownloadError(
        f"{display_url(url)} redirects more than {MAX_REDIRECTS} times: give the final URL", retryable=False
    )


def _interleaved(addresses: Sequence[str]) -> list[str]:
    """IPv6 and IPv4 in turn, the preferred kind first (RFC 8305, 4): if one fails, the other is tried."""
    first = [address for address in addresses if (":" in address) is (":" in addresses[0])]
    others = [address for address in addresses if address not in first]
    return [address for pair in zip_longest(first, others) for address in pair if address is not None]


async def _with_normal_location(response: httpx.Response, url: httpx.URL) -> httpx.Response:
    """The response, any redirect made absolute and normal: httpx parses every Location, and fails on some.

    Raises:
        ForbiddenUrlError: it cannot be read as a URL, or leads from https to http.
    """
    if response.status_code in _REDIRECTS and "location" in response.headers:
        raw = next(value for name, value in response.headers.raw if name.lower() == b"location")
        try:
            location = raw.decode()
        except UnicodeDecodeError:  # in another encoding: the host expects the same bytes back
            location = quote(raw, safe=string.punctuation + " ")
        try:
            target = check_url(normalize_url(location, base=str(url)), max_length=MAX_SIGNED_URL_LENGTH)
            if url.scheme == "https" and target.scheme == "http":
                raise ForbiddenUrlError(
                    f"{display_url(str(url))} redirects from https to http: give a URL that stays encrypted"
                )
        except ForbiddenUrlError:
            await response.aclose()
            raise
        response.headers["location"] = str(target)
    return response


def _is_host(host: str) -> bool:
    """Whether this is a DNS name in ASCII form or an address, without an IPv6 zone (``%eth0``)."""
    if ":" in host:
        return "%" not in host and is_address(host)
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
