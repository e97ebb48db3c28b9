"""What the archive block accepts, rejects and shows."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support import minio_client

from .conftest import archive

REJECTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"endpoint": ""}, ["endpoint", "minio.example.com:9000"]),
    ({"endpoint": "http://minio:9000"}, ["endpoint", "minio.example.com:9000", "TLS"]),
    ({"endpoint": "/"}, ["endpoint", "minio.example.com:9000"]),
    ({"endpoint": "example.com/s3"}, ["endpoint", "without a path", "its own host name or port"]),
    ({"endpoint": "https://example.com/s3/"}, ["endpoint", "without a path"]),
    ({"endpoint": "videos.s3.amazonaws.com", "bucket": "videos"}, ["must not begin with the bucket", "remove videos."]),
    ({"endpoint": "127.0.0.1:9000", "virtual_host": True}, ["virtual_host", "endpoint with a host name"]),
    ({"endpoint": "[::1]:9000", "virtual_host": True}, ["virtual_host", "endpoint with a host name"]),
    ({"virtual_host": True, "secure": True, "bucket": "a.b"}, ["virtual_host", "bucket name without dots"]),
    ({"endpoint": "me@minio:9000"}, ["endpoint", "minio.example.com:9000"]),
    ({"bucket": "ab"}, ["bucket", "3 to 63"]),
    ({"bucket": "a" * 64}, ["bucket", "3 to 63"]),
    ({"bucket": "Videos"}, ["bucket", "lowercase"]),
    ({"bucket": "a_b"}, ["bucket", "lowercase"]),
    ({"bucket": "a..b"}, ["bucket", "3 to 63"]),
    ({"bucket": "-ab"}, ["bucket", "3 to 63"]),
    ({"bucket": "No Such"}, ["bucket", "lowercase"]),
    ({"secure": "yes please"}, ["secure", "boolean"]),
    ({"bucket": "abc\n"}, ["bucket", "3 to 63"]),
    ({"bucket": "a.-b"}, ["bucket", "3 to 63"]),
    ({"bucket": "a-.b"}, ["bucket", "3 to 63"]),
    ({"bucket": "192.168.1.10"}, ["bucket", "IP address"]),
    ({"public_url": "videos.example.com"}, ["public_url", "complete URL"]),
    ({"public_url": "ftp://videos.example.com"}, ["public_url", "complete URL"]),
    ({"public_url": "https://v.example.com/?a=1"}, ["public_url", "query"]),
    ({"gateway_url": "videos.example.com", "gateway_secret": "s" * 16}, ["gateway_url", "complete URL"]),
    ({"gateway_url": "https://me:5ec7e7@v.example.com", "gateway_secret": "s" * 16}, ["gateway_url", "user name"]),
]


@pytest.mark.parametrize(("fields", "words"), REJECTIONS)
def test_rejection_names_the_field_and_what_to_do(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as raised:
        archive(**({"endpoint": "minio:9000"} | fields))
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert "5ec7e7" not in message


def test_trailing_slash_is_removed_from_the_endpoint() -> None:
    assert archive("minio.example.com:9000/").endpoint == "minio.example.com:9000"


def test_host_name_may_begin_with_the_bucket_name() -> None:
    assert archive("minio.example.com", bucket="minio").endpoint == "minio.example.com"


def test_secret_key_is_not_in_repr_or_dump() -> None:
    block = archive("minio:9000")
    for text in (repr(block), str(block), str(block.model_dump()), block.model_dump_json(), repr(minio_client(block))):
        assert "5ec7e7" not in text


@pytest.mark.parametrize(
    ("public_url", "link"),
    [
        (None, None),
        ("", None),
        (" ", None),
        (" https://v.example.com", "https://v.example.com/sora-videos/videos/a.mp4"),
        ("https://v.example.com", "https://v.example.com/sora-videos/videos/a.mp4"),
        ("https://v.example.com/s3/", "https://v.example.com/s3/sora-videos/videos/a.mp4"),
    ],
)
def test_public_links_carry_no_signature(public_url: str | None, link: str | None) -> None:
    assert archive("minio:9000", bucket="sora-videos", public_url=public_url).public_link("videos/a.mp4") == link


def test_virtual_host_puts_the_bucket_into_every_host_name() -> None:
    block = archive("oss.example.com", bucket="videos", virtual_host=True, public_url="https://v.example.com/")
    assert block.public_link("videos/a.mp4") == "https://videos.v.example.com/videos/a.mp4"
    assert minio_client(block).get_presigned_url("GET", "videos", "a").startswith("http://videos.oss.example.com/a?")
    assert block.connection().bucket_url("videos") == "http://videos.oss.example.com"
    assert archive("minio.example.com", bucket="minio", virtual_host=True).endpoint == "minio.example.com"


def test_secure_store_is_reached_by_https() -> None:
    block = archive("minio.example.com", secure=True)
    assert minio_client(block).get_presigned_url("GET", block.bucket, "a").startswith("https://minio.example.com/own-")
