"""The two clients of a bucket, with the same proxy and certificates.

obstore makes the small requests: it supports conditional writes and takes a tenth of the CPU time of Python's HTTP
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
"""The longest a small request may take, and the longest silence of the store while a file is transferred."""
NO_PROXY: Final = "http://127.0.0.1:9"
"""A placeholder for obstore, which would otherwise use the environment's proxy. Nothing listens on the discard port,
and only a redirect to another host would use it."""


@dataclass(frozen=True, slots=True)
class StoreConnection:
    """An S3 store and the keys to it. The fields are those of `blocks.VideoArchive`.

    Its clients raise a `ValueError` if the environment sets a proxy that is not supported.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    secure: bool
    region: str
    virtual_host: bool

    @property
    def url(self) -> str:
        """The store's URL."""
        return f"{'https' if self.secure else 'http'}://{self.endpoint}"

    def bucket_url(self, bucket: str) -> str:
        """The bucket's URL, to which object names are appended."""
        return with_bucket(self.url, bucket, self.virtual_host)

    def obstore_client(
        self, bucket: str, *, timeout_seconds: float | None = None, content_type: str | None = None
    ) -> S3Store:
        """An obstore client of one bucket, without retries: a repeated conditional write would fail its own condition.

        Args:
            timeout_seconds: the longest one request may take; None: `REQUEST_TIMEOUT_SECONDS`.
            content_type: for objects that are written without one, as by a copy.
        """
        proxy = proxy_for(self.url)
        # obstore never puts the bucket in front of the host: with virtual_host, the endpoint must already contain it.
        address = self.bucket_url(bucket) if self.virtual_host else self.url
        seconds = REQUEST_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
        return S3Store(
            bucket,
            # obstore reads every AWS_* variable that is not set here: another endpoint, no signature, a session token
            # (hence the credential provider). Only encryption and checksums are left to the environment: these only
            # add to requests. No Accept-Encoding is sent, so nothing compresses. Requesting identity would be signed,
            # and proxies that rewrite the header would break the signature.
            config={
                "endpoint": address,
                "aws_endpoint_url_s3": address,
                "region": self.region,
                "conditional_put": "etag",
                "copy_if_not_exists": "multipart",
                "disable_bulk_delete": True,  # a plain DELETE needs no extra permission, and errors have a status
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
        """Connections for minio-py, with retries: it only reads, or writes objects that no other process writes."""
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=REQUEST_TIMEOUT_SECONDS),
            "retries": urllib3.Retry(
                respect_retry_after_header=False,  # it may ask for hours, in a thread that cannot be ended
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
        """For requests that neither client makes. Each uses a new connection, so none can be stale. To be closed."""
        return httpx.Client(
            timeout=httpx.Timeout(REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            headers={"Accept-Encoding": "identity"},  # else the ETag may be that of a compressed copy
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
            proxy=proxy_for(self.url),
            verify=trust(),
        )

    def signed(self, method: str, url: str, headers: Mapping[str, str], sha256: str) -> dict[str, str]:
        """The signed headers of a request that neither client makes. `sha256` is that of its body, in hex."""
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
        """The bucket's region, which S3 reports even without a signature; empty if the store does not."""
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
    """A store's URL with the bucket in front of the host, or else in the path."""
    return url.replace("://", f"://{bucket}.", 1) if virtual_host else f"{url}/{bucket}"


def _pem(context: ssl.SSLContext) -> str:
    """The certificates that Python trusts, for obstore, which uses others. (It reads SSL_CERT_DIR itself.)"""
    return "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in context.get_ca_certs(binary_form=True))
