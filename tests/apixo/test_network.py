"""Which proxy a URL is reached through, and which certificates are trusted."""

import ssl
from pathlib import Path

import certifi
import pytest

from apixo.network import bypass_proxies, is_loopback, proxy_for, trust

PROXY = "http://proxy.corp:3128"
API = "https://api.apixo.ai/v1"

ROUTES: list[tuple[str, dict[str, str], str | None]] = [
    (API, {}, None),
    (API, {"HTTPS_PROXY": PROXY}, PROXY),
    (API, {"https_proxy": PROXY}, PROXY),
    (API, {"https_proxy": PROXY, "HTTPS_PROXY": "http://other:1"}, PROXY),
    (API, {"HTTPS_PROXY": f" {PROXY} "}, PROXY),
    (API, {"HTTPS_PROXY": "proxy.corp:3128"}, PROXY),
    (API, {"HTTPS_PROXY": "https://proxy.corp"}, "https://proxy.corp"),
    (API, {"HTTPS_PROXY": "HTTP://me:pw@proxy.corp:3128"}, "HTTP://me:pw@proxy.corp:3128"),
    (API, {"HTTPS_PROXY": ""}, None),
    (API, {"HTTPS_PROXY": " ", "ALL_PROXY": PROXY}, PROXY),
    (API, {"ALL_PROXY": PROXY}, PROXY),
    (API, {"all_proxy": PROXY}, PROXY),
    (API, {"HTTPS_PROXY": PROXY, "ALL_PROXY": "http://other:1"}, PROXY),
    (API, {"HTTP_PROXY": PROXY, "http_proxy": PROXY}, None),
    ("HTTPS://api.apixo.ai", {"HTTPS_PROXY": PROXY}, PROXY),
    # The key would pass through the proxy in plain text.
    ("http://api.apixo.ai", {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY}, None),
    ("http://10.0.0.1:9000", {"ALL_PROXY": PROXY}, None),
    ("https://localhost:9000", {"HTTPS_PROXY": PROXY}, None),
    ("https://LOCALHOST.", {"HTTPS_PROXY": PROXY}, None),
    ("https://minio.localhost", {"HTTPS_PROXY": PROXY}, None),
    ("https://127.0.0.1:9000", {"HTTPS_PROXY": PROXY}, None),
    ("https://127.1.2.3", {"HTTPS_PROXY": PROXY}, None),
    ("https://[::1]:9000", {"HTTPS_PROXY": PROXY}, None),
    ("https://[::ffff:127.0.0.1]", {"HTTPS_PROXY": PROXY}, None),
    ("https://127.0.0.1.example.com", {"HTTPS_PROXY": PROXY}, PROXY),
    ("https://localhost.example.com", {"HTTPS_PROXY": PROXY}, PROXY),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None),
    (API, {"HTTPS_PROXY": PROXY, "no_proxy": "*", "NO_PROXY": "nothing"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "api.apixo.ai"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "corp.example, .APIXO.ai"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "apixo.ai"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "xo.ai"}, PROXY),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "api.apixo.ai:443"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "api.apixo.ai:8443"}, PROXY),
    ("https://minio.corp:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "minio.corp:9000"}, None),
    ("https://10.1.2.3:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.1.2.3"}, None),
    ("https://10.1.2.3:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.1.2.3:9000"}, None),
    ("https://10.1.2.3:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.1.2.3:443"}, PROXY),
    ("https://10.1.2.3:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, None),
    ("https://10.1.2.3:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "192.168.0.0/16"}, PROXY),
    ("https://10.1.2.3:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, None),
    ("https://[fd00::1]:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "[fd00::1]"}, None),
    ("https://[fd00::1]:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "fd00::/16"}, None),
    ("https://[fd00::1]:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "fd01::/16"}, PROXY),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "*.apixo.ai"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "corp.example apixo.ai"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "corp.example;apixo.ai"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "<local>"}, PROXY),
    ("https://minio:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "<local>"}, None),
    (API, {"HTTPS_PROXY": PROXY, "NO_PROXY": "*,localhost"}, None),
    ("https://10.0.0.1:9000", {"HTTPS_PROXY": PROXY, "NO_PROXY": "*,localhost"}, None),
    (API, {"HTTPS_PROXY": "socks5://proxy:1080", "NO_PROXY": "apixo.ai"}, None),
    ("http://api.apixo.ai", {"ALL_PROXY": "socks5://proxy:1080"}, None),
]


@pytest.mark.parametrize(("url", "environ", "proxy"), ROUTES, ids=[f"{row[0]} {row[1]}" for row in ROUTES])
def test_proxy_for_url(url: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environ) == proxy


KEYLESS_ROUTES: list[tuple[str, dict[str, str], str | None]] = [
    ("https://cdn.example/v.mp4", {"HTTPS_PROXY": PROXY}, PROXY),
    ("https://cdn.example/v.mp4", {"HTTP_PROXY": PROXY}, None),
    ("http://cdn.example/v.mp4", {"HTTP_PROXY": PROXY}, PROXY),
    ("http://cdn.example/v.mp4", {"HTTPS_PROXY": PROXY}, None),
    ("http://cdn.example/v.mp4", {"all_proxy": PROXY}, PROXY),
    ("http://cdn.example/v.mp4", {"HTTP_PROXY": PROXY, "NO_PROXY": "cdn.example:80"}, None),
    ("http://127.0.0.1/v.mp4", {"HTTP_PROXY": PROXY}, None),
]


@pytest.mark.parametrize(
    ("url", "environ", "proxy"), KEYLESS_ROUTES, ids=[f"{row[0]} {row[1]}" for row in KEYLESS_ROUTES]
)
def test_proxy_for_url_that_receives_no_key(url: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environ, carries_key=False) == proxy


def test_unsupported_proxy_is_named_without_its_password() -> None:
    with pytest.raises(ValueError, match=r"socks5 proxy.*api\.apixo\.ai to NO_PROXY") as raised:
        proxy_for(API, {"ALL_PROXY": "socks5://me:5ec7e7@proxy:1080"})
    assert "5ec7e7" not in str(raised.value)


def test_proxy_for_defaults_to_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for(API) is None
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert proxy_for(API) == PROXY


@pytest.mark.parametrize("host", ["", "example.com", "0.0.0.0", "10.0.0.1", "::", "notlocalhost"])  # noqa: S104
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_certificates_from_the_environment_are_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end = "-----END CERTIFICATE-----\n"
    (tmp_path / "one.pem").write_text(Path(certifi.where()).read_text().partition(end)[0] + end)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "one.pem"))
    context = trust()
    assert len(context.get_ca_certs()) == 1
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_mozilla_certificates_are_trusted_if_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Slim containers and some builds of Python come without certificates."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setattr(ssl.SSLContext, "set_default_verify_paths", lambda _: None)
    assert len(trust().get_ca_certs()) > 50


def test_missing_certificate_folders_are_an_error_only_if_all_are_missing(tmp_path: Path) -> None:
    """OpenSSL expects colons between folders, and skips those that do not exist."""
    (tmp_path / "certs").mkdir()
    trust({"SSL_CERT_DIR": f"{tmp_path / 'gone'}:{tmp_path / 'certs'}"})
    with pytest.raises(ValueError, match=r"SSL_CERT_DIR is .*, which does not exist"):
        trust({"SSL_CERT_DIR": f"{tmp_path / 'gone'}:{tmp_path / 'away'}"})


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_missing_certificate_path_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*gone, which does not exist"):
        trust({name: str(tmp_path / "gone")})


def test_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(ValueError, match=r"SSL_CERT_FILE is .*junk\.pem, which has no certificate in PEM format"):
        trust({"SSL_CERT_FILE": str(tmp_path / "junk.pem")})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTP_PROXY": PROXY}, "127.0.0.1,localhost"),
        ({"https_proxy": PROXY}, "127.0.0.1,localhost"),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "store.example"}, "store.example,127.0.0.1,localhost"),
        ({"ALL_PROXY": PROXY, "no_proxy": "localhost, 127.0.0.1"}, "localhost, 127.0.0.1"),
        ({"HTTP_PROXY": PROXY, "no_proxy": "a.example", "NO_PROXY": "b.example"}, "a.example,127.0.0.1,localhost"),
    ],
)
def test_bypass_proxies_adds_loopback_to_no_proxy(environ: dict[str, str], expected: str | None) -> None:
    assert bypass_proxies(environ) == ({"no_proxy": expected, "NO_PROXY": expected} if expected else {})
