"""The environment's proxy and the trusted certificates, the same for all requests.

The API, the object store, image hosts and result hosts all use this: if the paid call gets through, the download of
the paid video must get through too.
"""

import contextlib
import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed leaves it out

import certifi

from apixo.errors import causes

UNTRUSTED: Final = (
    "its certificate is not trusted here. If a private CA signed it, set SSL_CERT_FILE to that CA's certificate for "
    "every process that runs flows. A self-signed certificate is not enough: have a CA sign it"
)
NO_WAY: Final = " If a proxy is the only way out of this network, set HTTPS_PROXY to it."
"""Advice for a host that cannot be reached at all."""
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost")
"""The names of this machine in `NO_PROXY`."""
PEM: Final = b"-----BEGIN "
"""The beginning of each certificate in a PEM file."""


def proxy_for(url: str, environ: Mapping[str, str] = os.environ, *, carries_key: bool = True) -> str | None:
    """The proxy that the environment sets for a URL; None: connect directly.

    Reads `HTTPS_PROXY`, else `ALL_PROXY`, each in lower case first, like curl and urllib, and honors `NO_PROXY`.
    Loopback hosts are always reached directly. So are http:// URLs if requests carry a key, which the proxy would see.
    The proxy's URL has a scheme. It may contain a user name and password, so it is a secret.

    Args:
        carries_key: whether requests carry a key of ours. Without one, `HTTP_PROXY` counts for http:// URLs.

    Raises:
        ValueError: the environment sets a proxy that is not an HTTP proxy.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    if is_loopback(host) or (target.scheme != "https" and carries_key):
        return None
    proxy = _variable(f"{target.scheme}_proxy", environ) or _variable("all_proxy", environ)
    if not proxy:
        return None
    if _bypasses(host, target.port or (443 if target.scheme == "https" else 80), _variable("no_proxy", environ)):
        return None
    scheme, separator, _ = proxy.partition("://")
    if not separator:
        return f"http://{proxy}"
    if scheme.lower() not in ("http", "https"):
        raise ValueError(
            f"The environment sets a {scheme} proxy for {target.scheme} URLs, but only HTTP proxies are supported. "
            f"Set {target.scheme.upper()}_PROXY to an HTTP proxy, or add {host} to NO_PROXY."
        )
    return proxy


def bypass_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that exclude this machine from the environment's proxies; empty if the environment has no proxy.

    A proxy cannot reach this machine's loopback. Prefect's clients still use it for a local server, and its events
    client uses the https proxy. Both spellings are set: httpx and curl read lower case first, others upper case.
    """
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") and environ[name] for name in environ):
        return {}
    given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    missing = [host for host in LOOPBACK_NAMES if host not in re.split(r"[\s,]+", given)]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(filter(None, [given, *missing])))


def trust(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """The certificates to trust: those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, else the system's and Mozilla's.

    Takes about 18 ms, and twice that with both. A system without certificates (a slim container) still trusts
    Mozilla's.

    Raises:
        ValueError: one of the two variables is wrong; see `named_certificates`.
    """
    named = named_certificates(environ)
    context = ssl.create_default_context()
    # Since Python 3.13 it also requires fields that many private CAs omit, such as key identifiers. The object store's
    # client does not, and both must trust the same certificates.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not named:
        context.load_verify_locations(certifi.where())
    return context


def named_certificates(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Which of `SSL_CERT_FILE` and `SSL_CERT_DIR` are set. Takes a fraction of a millisecond.

    Raises:
        ValueError: one of them names a missing path, or a file without certificates. Nothing would be trusted, and
            each connection would blame its server.
    """
    named = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environ.get(name)]
    for name in named:
        paths = [Path(environ[name])] if name == "SSL_CERT_FILE" else list(map(Path, environ[name].split(os.pathsep)))
        if not any(path.is_file() if name == "SSL_CERT_FILE" else path.is_dir() for path in paths):
            raise ValueError(f"{name} is {environ[name]}, which does not exist. Correct it, or unset it.")
        if name == "SSL_CERT_FILE" and PEM not in paths[0].read_bytes():
            raise ValueError(
                f"{name} is {environ[name]}, which has no certificate in PEM format. Correct it, or unset it."
            )
    return named


def is_untrusted_certificate(error: BaseException) -> bool:
    """Whether a connection failed because the server's certificate is not trusted here."""
    return any(
        isinstance(seen, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(seen)
        for seen in causes(error)
    )


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine."""
    host = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _bypasses(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names a host, in any common syntax: `*.corp.example`, `10.0.0.0/8`, `<local>`.

    Names are not resolved, so a network matches only hosts given as IP addresses.
    """
    entries = [entry.removeprefix("*") or "*" for entry in re.split(r"[\s,;]+", no_proxy) if entry]
    if "*" in entries or ("<local>" in entries and "." not in host and ":" not in host):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return any(_matches(entry, address, port) for entry in entries)
    # With the port, because an entry may have one.
    return bool(proxy_bypass_environment(f"{host}:{port}", {"no": ",".join(entries)}))


def _matches(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
    """Whether an entry of NO_PROXY is this IP address or a network that contains it."""
    entry = entry.removesuffix(f":{port}") if entry.startswith("[") or entry.count(":") == 1 else entry
    try:
        return address in ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return False


def _variable(name: str, environ: Mapping[str, str]) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()
