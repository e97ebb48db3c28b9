"""Image-to-video in the sandbox, which really fetches the image, and the sample images that it serves."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from deployments.sandbox import Fault, SandboxServer
from deployments.sandbox.image_download import USER_AGENT
from tests.deployments.sandbox.caller import Caller


@pytest.mark.parametrize("name", ["harbor.jpg", "mountains.png", "lake.webp", "anything-else.jpg"])
def test_samples_are_images_that_never_change(sandbox: SandboxServer, call: Caller, name: str) -> None:
    reply = call.http.get(f"{sandbox.base_url}/samples/{name}")
    image = Image.open(BytesIO(reply.content))
    assert (image.size, reply.headers["content-type"]) == ((1280, 720), image.get_format_mimetype())
    assert len(reply.content) < 10 * 1024 * 1024
    assert call.http.get(f"{sandbox.base_url}/samples/{name}").content == reply.content


def test_unknown_file_extension_is_404(sandbox: SandboxServer, call: Caller) -> None:
    assert call.http.get(f"{sandbox.base_url}/samples/harbor.gif").status_code == 404


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_valid_image_is_fetched_once_without_the_api_key(sandbox: SandboxServer, call: Caller, extension: str) -> None:
    url = f"{sandbox.base_url}/samples/harbor.{extension}"
    data = call.final_status(call.task(mode="image-to-video", image_urls=[url]))
    assert data["state"] == "success"
    (fetched,) = sandbox.record.images()
    assert fetched.headers["user-agent"] == USER_AGENT
    assert not fetched.carried_api_key


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/closed.jpg",
        "http://no-such-host.invalid/x.jpg",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1",
        "not a url",
        "file:///etc/passwd",
        "",
        "{base}/samples/harbor.gif",
        "{base}/",
    ],
)
def test_unusable_image_fails_the_task(sandbox: SandboxServer, call: Caller, url: str) -> None:
    good = f"{sandbox.base_url}/samples/harbor.jpg"
    bad = url.replace("{base}", sandbox.base_url)
    data = call.final_status(call.task(mode="image-to-video", image_urls=[good, bad]))
    assert (data["state"], data["failCode"]) == ("failed", "INVALID_IMAGE_URL")
    assert data["failMsg"]


@pytest.mark.parametrize(
    "kind",
    ["http_404", "http_500", "gif_named_jpg", "too_big", "endless", "redirect_private", "truncated", "html"],
)
def test_damaged_sample_fails_the_task(sandbox: SandboxServer, call: Caller, kind: str) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "image", "kind": kind}))
    url = f"{sandbox.base_url}/samples/harbor.jpg"
    data = call.final_status(call.task(mode="image-to-video", image_urls=[url]))
    assert (data["state"], data.get("failCode")) == ("failed", "INVALID_IMAGE_URL")
    assert [request.fault for request in sandbox.record.images()] == [kind]
    assert call.final_status(call.task(mode="image-to-video", image_urls=[url]))["state"] == "success"


def test_invalid_image_is_ignored_in_text_to_video_mode(call: Caller) -> None:
    assert call.final_status(call.task(image_urls=["http://127.0.0.1:9/x.jpg"]))["state"] == "success"
