"""The block that says where videos and the ledger are kept."""

import hmac
import re
from typing import ClassVar, Final, Self
from urllib.parse import quote

from minio.helpers import check_bucket_name
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator

from apixo.urls import OptionalBaseUrl
from blocks.object_store import ObjectStore
from blocks.s3_clients import StoreConnection, with_bucket

SHORTEST_SECRET: Final = 16
"""The minimum length of a gateway secret: a link shows what it signs, so a short secret could be guessed offline."""
SHORTEST_PASSWORD: Final = 12
"""The minimum length of the gallery's password. Attempts are limited, so it may be easy to remember."""


class VideoArchive(Block):
    """Where videos and the ledger are kept: a bucket of MinIO or of another S3 store with conditional writes.

    Example:
        Load a stored block and list the archived videos:
        ```python
        from blocks.video_archive import VideoArchive

        archive = VideoArchive.load("BLOCK_NAME")
        names = await archive.store().names("videos/")
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # messages end up in logs

    _block_type_name = "Video Archive"
    _block_type_slug = "video-archive"
    _description = "Where videos and the ledger are kept: a bucket of MinIO or of another S3 store."
    # Shipped with Prefect itself, at a fixed commit, like the logos of its own blocks.
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/filesystem.png"
    )
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://min.io/docs/minio/linux/developers/python/API.html")

    endpoint: str = Field(
        default=...,
        title="Endpoint",
        description="Host and port of the store, such as minio.example.com:9000, without http://.",
    )
    access_key: str = Field(default=..., title="Access key", description="The store's access key (its user name).")
    secret_key: SecretStr = Field(default=..., title="Secret key", description="The store's secret key (its password).")
    secure: bool = Field(default=True, title="TLS", description="Whether the store uses HTTPS.")
    region: str = Field(default="us-east-1", title="Region", description="The region that requests are signed for.")
    virtual_host: bool = Field(
        default=False,
        title="Virtual-host style",
        description=(
            "Whether the bucket's name goes in front of the host, as some stores require, rather than into the path. "
            "`sora setup` detects it if the store says so."
        ),
    )
    bucket: str = Field(
        default="sora-videos", title="Bucket", description="The bucket. `sora setup` creates it if it is missing."
    )
    public_url: OptionalBaseUrl = Field(
        default=None,
        title="Public URL",
        description=(
            "How a browser reaches the store, such as https://videos.example.com. If set, artifacts and events link to "
            "the objects there. Those links have no signature, so the bucket or a proxy must let the reader in."
        ),
    )

    gateway_url: OptionalBaseUrl = Field(
        default=None,
        title="Gallery URL",
        description=(
            "How a browser reaches the gallery, sora serve, such as https://videos.example.com. If set, artifacts have "
            "a player and a permanent link, through the gallery. The bucket stays private."
        ),
    )
    gateway_secret: SecretStr | None = Field(
        default=None,
        title="Gallery secret",
        description=(
            "A random text of 16 characters or more that signs links to single videos. Required with a gallery URL. "
            "Changing it invalidates all existing links."
        ),
    )
    gateway_password: SecretStr | None = Field(
        default=None,
        title="Gallery password",
        description="The password for the gallery, 12 characters or more. Not needed for this machine alone.",
    )

    @field_validator("endpoint")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        value = value.strip().rstrip("/")
        if re.fullmatch(r"(https?://)?[^/@:]+(:\d+)?/+[^/].*", value):
            raise ValueError(
                "must be a host with an optional port, without a path: requests are signed for the path that the store "
                "sees, so behind a reverse proxy it needs its own host name or port"
            )
        if "/" in value or "@" in value or not value:
            raise ValueError("must be a host with an optional port, such as minio.example.com:9000; see TLS for https")
        return value

    @field_validator("bucket")
    @classmethod
    def _bucket_name(cls, value: str) -> str:
        try:
            check_bucket_name(value.replace("\n", " "), strict=True)  # it overlooks a trailing line feed
        except ValueError:
            raise ValueError(
                "must be 3 to 63 lowercase letters, digits, single dots and hyphens, and no IP address, as S3 requires"
            ) from None
        return value

    @model_validator(mode="after")
    def _endpoint_and_bucket(self) -> Self:
        if self.endpoint.startswith(f"{self.bucket}.s3."):  # as shown by AWS; bucket minio at minio.example.com is fine
            raise ValueError(
                f"endpoint must not begin with the bucket: remove {self.bucket}. from it. The bucket goes into the "
                "path, or, with virtual_host, in front of the host"
            )
        if not self.virtual_host:
            return self
        host = self.endpoint.rpartition(":")[0] or self.endpoint
        if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
            raise ValueError(
                "virtual_host needs an endpoint with a host name: a bucket name cannot be put in front of an IP address"
            )
        if "." in self.bucket and self.secure:
            raise ValueError(
                "virtual_host needs a bucket name without dots: certificates cover only one name in front of the host"
            )
        return self

    @model_validator(mode="after")
    def _gateway_is_guarded(self) -> Self:
        secret, password = self.gateway_secret, self.gateway_password
        if secret is not None and len(secret.get_secret_value()) < SHORTEST_SECRET:
            raise ValueError(f"gateway_secret must have {SHORTEST_SECRET} characters or more: `openssl rand -hex 32`")
        if password is not None and len(password.get_secret_value()) < SHORTEST_PASSWORD:
            raise ValueError(f"gateway_password must have {SHORTEST_PASSWORD} characters or more")
        if self.gateway_url is not None and secret is None:
            raise ValueError("gateway_url needs a gateway_secret, which signs its links: `openssl rand -hex 32`")
        return self

    def store(self) -> ObjectStore:
        """The bucket's client, with the calls that the ledger and the archive need. Close it with `aclose`.

        Raises:
            ValueError: the environment sets a proxy that is not supported.
        """
        return ObjectStore(self.connection(), self.bucket)

    def connection(self) -> StoreConnection:
        """The endpoint and the keys, for the clients."""
        return StoreConnection(
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key.get_secret_value(),
            secure=self.secure,
            region=self.region,
            virtual_host=self.virtual_host,
        )

    def public_link(self, object_name: str, *, bucket: str | None = None) -> str | None:
        """The unsigned URL of an object of this or another bucket, for a browser; None without a public URL."""
        if not self.public_url:
            return None
        return f"{with_bucket(self.public_url, bucket or self.bucket, self.virtual_host)}/{quote(object_name)}"

    def gateway_token(self, key: str) -> str:
        """The token that opens one key's video in the gallery, and nothing else: HMAC-SHA256 of the key, in hex.

        Raises:
            ValueError: the block has no gateway secret.
        """
        if self.gateway_secret is None:
            raise ValueError("this video-archive block has no gateway_secret; set one to have links to single videos")
        secret = self.gateway_secret.get_secret_value().encode()
        return hmac.digest(secret, f"video/{key}".encode(), "sha256").hex()

    def gateway_link(self, key: str, object_name: str) -> str | None:
        """A permanent URL of one video or poster, which anyone with the URL can open; None without a gallery URL.

        It may appear in artifacts, but not in events, logs or records.
        """
        if self.gateway_url is None:
            return None
        return f"{self.gateway_url}/v/{key}/{object_name.rpartition('/')[2]}?t={self.gateway_token(key)}"

    def gallery_link(self, key: str) -> str | None:
        """The page of one video in the gallery, which requires a login; None without a gallery URL."""
        return f"{self.gateway_url}/k/{key}" if self.gateway_url else None
