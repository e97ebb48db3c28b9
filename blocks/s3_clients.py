"""How a bucket is reached: two clients, with the same proxy and certificates.

obstore makes the small requests: it knows conditional writes, and takes a tenth of the processor time of Python's HTTP
clients. minio-py does what obstore cannot: signed links, new buckets, files in parts of known size.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import httpx
import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3
from obstore.store import S3Store

from apixo.network import proxy_for, trust

if TYPE_CHECKING:  # obstore has it in its stubs only
    from obstore.store import S3Credential

CONNECT_TIMEOUT_SECONDS: Final = 5.0
REQUEST_TIMEOUT_SECONDS: Final = 30.0
"""The longest one small request may take, and the longest silence of the store while a file is transferred."""
NO_PROXY: Final = "http://127.0.0.1:9"
"""Stands where a proxy must be named so that the environment's is not taken. Nothing listens on the discard port, and
only a redirect to another host would lead there."""


@dataclass(frozen=True, slots=True)
class StoreConnection:
    """An S3 store and the keys to it.

    Attributes:
        endpoint: host and port.
        secure: whether it is reached by https.
        region: what requests are signed for.
        virtual_host: whether the bucket's name goes in front of the host rather than into the path.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    secure: bool
    region: str
    virtual_host: bool = False

    @property
    def url(self) -> str:
        """The store's URL."""
        return f"{'https' if self.secure else 'http'}://{self.endpoint}"

    def bucket_url(self, bucket: str) -> str:
        """The URL to which the names of a bucket's objects are appended."""
        return with_bucket(self.url, bucket, self.virtual_host)

    def obstore_client(
        self, bucket: str, *, timeout_seconds: float | None = None, content_type: str | None = None
    ) -> S3Store:
        """An obstore client of one bucket. It repeats nothing: a repeated conditional write refuses itself.

        Args:
            timeout_seconds: the longest one request may take; None: `REQUEST_TIMEOUT_SECONDS`.
            content_type: of objects that are written without one, as by a copy.

        Raises:
            ValueError: the environment sets a proxy that is not supported.
        """
        proxy = proxy_for(self.url)
        # obstore never puts the bucket in front of the host: it has to stand there, or is added to the path.
        address = self.bucket_url(bucket) if self.virtual_host else self.url
        seconds = REQUEST_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
        return S3Store(
            bucket,
            # obstore takes every AWS_* variable that is not given here: another address, no signature, a session token
            # (hence the credential provider). Left to the environment are encryption and checksums, which only add.
            # No Accept-Encoding is sent, so nothing compresses; one that asks for identity would be signed, and proxies
            # that rewrite it break the signature.
            config={
                "endpoint": address,
                "aws_endpoint_url_s3": address,
                "region": self.region,
                "conditional_put": "etag",
                "copy_if_not_exists": "multipart",
                "disable_bulk_delete": True,  # a plain DELETE needs no other right, and its refusal has a status
                "request_payer": False,
                "s3_express": False,
                "skip_signature": False,
                "unsigned_payload": False,
                "virtual_hosted_style_request": self.virtual_host,
            },
            client_options={
                "allow_http": not self.secure,
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_SECONDS),
                "timeout": timedelta(seconds=seconds),
                "proxy_url": proxy or NO_PROXY,
                "default_content_type": content_type or "application/octet-stream",
                **({} if proxy else {"proxy_excludes": urlsplit(address).hostname or ""}),
                **({"root_certificate": _pem(trust())} if self.secure else {}),
            },
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
            credential_provider=self._credential,
        )

    def _credential(self) -> "S3Credential":
        return {
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "token": None,
            "expires_at": None,
        }

    def pool(self) -> urllib3.PoolManager:
        """Connections for minio-py. It repeats what failed: it only reads, or writes what no one else writes.

        Raises:
            ValueError: the environment sets a proxy that is not supported.
        """
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=REQUEST_TIMEOUT_SECONDS),
            "retries": urllib3.Retry(
                respect_retry_after_header=False,  # a maintenance page may ask for hours, in a thread that nothing ends
                total=2,
                backoff_factor=0.2,
                status_forcelist=[500, 502, 503, 504],
            ),
            "maxsize": 16,
            "ssl_context": trust() if self.secure else None,
        }
        proxy = proxy_for(self.url)
        if proxy is None:
            return urllib3.PoolManager(**options)
        user = urlsplit(proxy)
        login = f"{unquote(user.username)}:{unquote(user.password or '')}" if user.username else None
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)

    def http(self) -> httpx.Client:
        """For requests that neither client makes: a new connection for each, so none can have gone stale. To be closed.

        Raises:
            ValueError: the environment sets a proxy that is not supported.
        """
        return httpx.Client(
            timeout=httpx.Timeout(REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            headers={"Accept-Encoding": "identity"},  # else the ETag may come back as that of a compressed copy
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
            proxy=proxy_for(self.url),
            verify=trust(),
        )

    def signed(self, method: str, url: str, headers: Mapping[str, str], sha256: str) -> dict[str, str]:
        """The headers of a request that neither client makes, signed. SHA-256: of its body, in hexadecimal."""
        now, target = datetime.now(UTC), urlsplit(url)
        signed = sign_v4_s3(
            method=method,
            url=target,
            region=self.region,
            headers={
                "Host": target.netloc,
                "x-amz-content-sha256": sha256,
                "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
                **headers,
            },
            credentials=Credentials(self.access_key, self.secret_key),
            content_sha256=sha256,
            date=now,
        )
        return {name: str(value) for name, value in signed.items()}

    def bucket_region(self, bucket: str) -> str:
        """The region that a bucket is in, as S3 answers anybody, without a signature; empty: the store does not."""
        try:
            with self.http() as http:
                return str(http.head(self.bucket_url(bucket)).headers.get("x-amz-bucket-region", ""))
        except httpx.HTTPError:
            return ""

    def minio(self, pool: urllib3.PoolManager) -> Minio:
        """A minio-py client on these connections. Thread-safe."""
        client = Minio(
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=self.secure,
            region=self.region,
            http_client=pool,
        )
        if self.virtual_host:
            client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        return client


def with_bucket(url: str, bucket: str, virtual_host: bool) -> str:
    """A store's URL with the bucket in front of its host, or else behind it."""
    return url.replace("://", f"://{bucket}.", 1) if virtual_host else f"{url}/{bucket}"


def _pem(context: ssl.SSLContext) -> str:
    """What Python trusts, for a client that looks for certificates in other places. (It reads SSL_CERT_DIR itself.)"""
    return "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in context.get_ca_certs(binary_form=True))
