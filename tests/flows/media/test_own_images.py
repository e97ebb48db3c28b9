"""Images from local files: how they are named, rotated, shrunk and uploaded."""

import io
import struct
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from blocks import VideoArchive
from flows.media.media_errors import ImageRefusedError
from flows.media.own_images import (
    EXIF_ORIENTATION,
    LONGEST_SIGNATURE_SECONDS,
    OwnImage,
    image_address,
    read_own_image,
    upload,
)

ODD_EXIF = [
    b"Exif\0\0JUNKJUNK",
    # A number in place of the camera's name, and an orientation.
    b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    + struct.pack("<HHIf", 0x010F, 11, 1, 1.0)
    + struct.pack("<HHIHHI", EXIF_ORIENTATION, 3, 1, 6, 0, 0),
]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 160, 3)).astype(np.uint8))


def save_image(folder: Path, name: str, *, turned: bool = False, image: Image.Image = NOISE, **options: Any) -> Path:
    exif = Image.Exif()
    if turned:
        exif[EXIF_ORIENTATION] = 6
    image.save(folder / name, **{"exif": exif, **options})
    return folder / name


def read(path: Path, *, max_bytes: int = 10_000_000, fit: bool = False) -> OwnImage:
    return read_own_image(path, shown=path.name, max_bytes=max_bytes, fit=fit)


def open_image(image: OwnImage) -> Image.Image:
    return Image.open(io.BytesIO(image.data))


def test_image_is_named_by_its_content_and_kept_unchanged(tmp_path: Path) -> None:
    one, same = (read(save_image(tmp_path, name, turned=True)) for name in ("one.jpg", "same.jpg"))
    assert one.object_name == same.object_name
    assert one.data == (tmp_path / "one.jpg").read_bytes()
    assert one.sideways
    assert read(save_image(tmp_path, "other.png")).object_name != one.object_name


def test_sideways_image_is_rotated_if_fit_is_requested(tmp_path: Path) -> None:
    fitted = read(save_image(tmp_path, "a.jpg", turned=True), fit=True)
    assert open_image(fitted).size == (90, 160)
    assert not open_image(fitted).getexif()
    assert not fitted.sideways
    upright = read(save_image(tmp_path, "b.jpg"), fit=True)
    assert upright.data == (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_oversized_image_is_shrunk_if_fit_is_requested(tmp_path: Path, name: str) -> None:
    path = save_image(tmp_path, name)
    limit = path.stat().st_size // 2
    with pytest.raises(ImageRefusedError, match="--fit-images"):
        read(path, max_bytes=limit)
    fitted = read(path, max_bytes=limit, fit=True)
    assert len(fitted.data) <= limit
    assert open_image(fitted).format == "JPEG"
    assert fitted.object_name == read(path, max_bytes=limit, fit=True).object_name
    assert fitted.object_name != read(path, max_bytes=limit - 100, fit=True).object_name


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_areas_become_white(tmp_path: Path, mode: str) -> None:
    clear = NOISE.convert(mode)
    if mode == "P":
        clear.info["transparency"] = bytes(256)
    else:
        clear.putalpha(0)
    path = save_image(tmp_path, "clear.png", image=clear)
    fitted = open_image(read(path, max_bytes=path.stat().st_size - 1, fit=True))
    assert (fitted.mode, fitted.getextrema()) == ("RGB", ((255, 255),) * 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("exif", ODD_EXIF, ids=["junk", "wrong types"])
def test_odd_exif_data_does_not_prevent_use_of_image(tmp_path: Path, name: str, exif: bytes) -> None:
    path = save_image(tmp_path, name, exif=exif, dpi=(72, 72))
    turned = exif is ODD_EXIF[1]
    assert read(path).sideways == turned
    fitted = open_image(read(path, fit=True, max_bytes=path.stat().st_size - 1))
    assert (fitted.width < fitted.height) == turned


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_fitted_image_keeps_color_profile_and_drops_other_metadata(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"icc_profile": PROFILE, "comment": b"taken at home"}
    path = save_image(tmp_path, name, turned=True, **options)
    for max_bytes in (10_000_000, path.stat().st_size * 2 // 3):
        fitted = open_image(read(path, fit=True, max_bytes=max_bytes))
        assert fitted.size[0] < fitted.size[1]
        assert fitted.info["icc_profile"] == PROFILE
        assert "comment" not in fitted.info
        assert not fitted.getexif()


@pytest.mark.parametrize(("mode", "space"), [("CMYK", b"CMYK"), ("L", b"GRAY")])
def test_profile_of_another_color_space_is_dropped(tmp_path: Path, mode: str, space: bytes) -> None:
    profile = PROFILE[:16] + space + PROFILE[20:]
    path = save_image(tmp_path, "a.jpg", image=NOISE.convert(mode), icc_profile=profile)
    fitted = open_image(read(path, fit=True, max_bytes=path.stat().st_size - 1))
    assert fitted.mode == "RGB"
    assert fitted.info.get("icc_profile") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "not a file on this machine"), (b"", "is empty"), (b"%PDF", "is a PDF"), (b"GIF89a", "is a GIF")],
)
def test_file_that_is_not_an_image_is_rejected_with_its_name(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageRefusedError, match=f"^a.jpg.*{words}"):
        read(path)


async def test_image_is_uploaded_once_and_gets_signed_or_public_url(archive: VideoArchive, tmp_path: Path) -> None:
    image = read(save_image(tmp_path, "a.png"))
    async with aclosing(archive.store()) as store:
        await upload(image, store)
        first = await store.get(image.object_name)
        await upload(image, store)
        again = await store.get(image.object_name)
        url = f"s3://{archive.bucket}/{image.object_name}"
        signed_url = image_address(url, archive, store, valid_seconds=360 * 3600)
        public = archive.model_copy(update={"public_url": "https://videos.example.com"})
        assert image_address(f"{url} 2", public, store, valid_seconds=1) == (
            f"https://videos.example.com/{archive.bucket}/{image.object_name}%202"
        )
    assert first is not None
    assert first == again
    assert f"X-Amz-Expires={LONGEST_SIGNATURE_SECONDS}" in signed_url
