"""Which way a request takes to a configured server: the proxy of the environment, and the certificates to trust.

For servers that a person configured (the API, the object store). Hosts that come from outside take no proxy.
"""

import ipaddress
import os
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed leaves it out


def proxy_for(url: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The proxy that the environment wants for an address; None: connect directly.

    `HTTPS_PROXY`, else `ALL_PROXY`, in lower case first, as curl and urllib read them; `NO_PROXY` is honored. Loopback
    hosts are always reached directly. So is every http:// address: a proxy would see what is sent there in clear.

    Args:
        url: the server's address.
        environ: the environment variables.

    Returns:
        The proxy's address with its scheme, and its user name and password if it has them: it is a secret.

    Raises:
        ValueError: the environment names a proxy that is not an HTTP proxy.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    if target.scheme != "https" or is_loopback(host):
        return None
    proxy = _variable("https_proxy", environ) or _variable("all_proxy", environ)
    if not proxy:
        return None
    # With the port, for an entry of NO_PROXY may have one.
    if proxy_bypass_environment(f"{host}:{target.port or 443}", {"no": _variable("no_proxy", environ)}):
        return None
    scheme, separator, _ = proxy.partition("://")
    if not separator:
        return f"http://{proxy}"
    if scheme.lower() not in ("http", "https"):
        raise ValueError(
            f"HTTPS_PROXY or ALL_PROXY names a {scheme} proxy, and only HTTP proxies can be used. Name an HTTP proxy "
            f"in HTTPS_PROXY, or put {host} into NO_PROXY."
        )
    return proxy


def trust() -> ssl.SSLContext:
    """The certificates that this machine trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` replace them. Takes some 18 ms."""
    return ssl.create_default_context()


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine."""
    host = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _variable(name: str, environ: Mapping[str, str]) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


__all__ = ["is_loopback", "proxy_for", "trust"]
