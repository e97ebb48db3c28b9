"""What is rejected before anything is paid: requests, keys, images, hosts, and missing blocks."""

from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError

from apixo import VideoRequest
from deployments.sandbox import Fault, SandboxServer
from flows.generate_video import generate_video
from flows.media.media_errors import MediaError
from flows.record.pipeline_errors import InvalidKeyError, PipelineError
from tests.flows.conftest import StoredBlocks
from tests.support import KITE, unique


async def test_invalid_request_is_rejected_before_paying(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    invalid: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "x", "duration": 5}, "duration.*4, 8 or 12"),
        ({"prompt": "x", "mode": "image-to-video"}, "image-to-video.*image_urls"),
    ]
    for request_fields, message in invalid:
        with pytest.raises(ParameterTypeError, match=f"(?s){message}"):
            await stored.generate(request_fields, key=key)  # type: ignore[arg-type] # as the UI's form would send it
        assert sandbox.record.all() == [], message
        assert await stored.recorded(key) is None, message


async def test_invalid_key_is_rejected_before_paying(stored: StoredBlocks, sandbox: SandboxServer) -> None:
    for bad in ("../escape", "a\n"):
        with pytest.raises((ParameterTypeError, InvalidKeyError)):
            await stored.generate(KITE, key=bad)
        assert sandbox.record.all() == [], bad


async def test_invalid_image_is_rejected_before_paying(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    request = VideoRequest(prompt="x", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    for kind, message in (("gif_named_jpg", "GIF"), ("redirect_private", "is not public")):
        sandbox.faults.add(Fault.model_validate({"call": "image", "kind": kind, "times": -1}))
        with pytest.raises(MediaError, match=f"(?is){message}"):
            await stored.generate(request, key=key)
        assert sandbox.record.submits() == [], kind
        assert await stored.recorded(key) is None, kind
        sandbox.faults.clear()


async def test_link_local_image_host_is_rejected_even_if_private_hosts_are_allowed(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(MediaError):
        await stored.generate(VideoRequest(prompt="x", image_urls=["http://169.254.169.254/a.jpg"]), key=key)
    assert sandbox.record.submits() == []


async def test_private_image_host_is_rejected_by_default(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    stored.api.allow_private_hosts = False
    await stored.api.save(stored.name, overwrite=True)
    request = VideoRequest(prompt="x", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    with pytest.raises(MediaError, match=r"127\.0\.0\.1"):
        await stored.generate(request, key=key)
    assert sandbox.record.all() == []


async def test_missing_blocks_raise_error_with_their_name(prefect_server: object, key: str) -> None:
    missing = unique("nobody")
    with pytest.raises(PipelineError, match=rf"no apixo-api block named '{missing}'.*sora setup"):
        await generate_video(KITE, key=key, api=missing, archive=missing)


async def test_ambiguous_request_raises_error_with_the_reason(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    request: Any = {"prompt": "A fox", "image_urls": "https://example.com/a.jpg,b.jpg"}
    with pytest.raises(ParameterTypeError, match=r"image_urls contains a comma, semicolon or plus.*%2C"):
        await stored.generate(request, key=key)
    assert sandbox.record.submits() == []
