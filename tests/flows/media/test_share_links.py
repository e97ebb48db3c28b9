"""Sharing links, as people copy them, and the URLs that lead to the image itself."""

import pytest

from flows.media.share_links import share_link


@pytest.mark.parametrize(
    ("url", "service", "direct"),
    [
        ("https://drive.google.com/file/d/1A_b-C2/view?usp=sharing", "Google Drive", "https://drive.google.com/uc?export=download&id=1A_b-C2"),
        ("https://drive.google.com/file/u/0/d/1A_b-C2/edit", "Google Drive", "https://drive.google.com/uc?export=download&id=1A_b-C2"),
        ("drive.google.com/open?id=1A_b-C2", "Google Drive", "https://drive.google.com/uc?export=download&id=1A_b-C2"),
        ("https://www.dropbox.com/s/abc/a%20b.jpg?dl=0", "Dropbox", "raw=1"),
        (
            "https://www.dropbox.com/scl/fi/abc/a.jpg?rlkey=k%2F1&st=x&dl=0", "Dropbox",
            "raw=1",
        ),
        ("https://www.dropbox.com/s/abc/a.jpg", "Dropbox", "raw=1"),
        ("https://www.dropbox.com/scl/fo/abc/h?rlkey=1&dl=0", "Dropbox", None),
        ("https://drive.google.com/drive/folders/1A_b-C2", "Google Drive", None),
        (
            "https://drive.google.com/a/corp.example/file/d/1A_b-C2/view?resourcekey=0-k", "Google Drive",
            "id=1A_b-C2, followed by &resourcekey= as in the link",
        ),
        ("https://imgur.com/JvR66Hc", "Imgur", "https://i.imgur.com/JvR66Hc.jpg"),
        ("https://imgur.com/a-kite-over-water-JvR66Hc", "Imgur", "https://i.imgur.com/JvR66Hc.jpg"),
        ("https://imgur.com/a/JvR66Hc", "Imgur", None),
        ("https://imgur.com/gallery/a-kite-JvR66Hc", "Imgur", None),
        ("https://github.com/o/r.x/blob/main/a/b.png", "GitHub", "https://raw.githubusercontent.com/o/r.x/main/a/b.png"),
        ("https://unsplash.com/photos/a-kite-on-a-beach-AbC_d-12345", "Unsplash", "https://unsplash.com/photos/AbC_d-12345/download"),
        ("https://commons.wikimedia.org/wiki/File:Über_a.jpg", "Wikimedia", "https://commons.wikimedia.org/wiki/Special:FilePath/%C3%9Cber_a.jpg"),
        ("https://en.wikipedia.org/wiki/File:A_(1).jpg", "Wikimedia", "https://commons.wikimedia.org/wiki/Special:FilePath/A_(1).jpg"),
        ("https://team.sharepoint.com/:i:/s/x/Abc?e=1", "SharePoint", "&download=1"),
        ("https://1drv.ms/i/s!Abc", "OneDrive", None),
        ("https://photos.app.goo.gl/Abc", "Google Photos", None),
        ("https://share.icloud.com/photos/0abc", "iCloud", None),
    ],
)  # fmt: skip
def test_sharing_link_is_recognized(url: str, service: str, direct: str | None) -> None:
    found = share_link(url)
    assert found is not None
    assert found.startswith(f"is a link from {service} ")
    assert (direct or "host the image") in found
    assert "rlkey" not in found
    assert direct is None or not direct.startswith("https:") or share_link(direct) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://drive.google.com/uc?export=download&id=1A_b-C2",
        "https://drive.usercontent.google.com/download?id=1A_b-C2",
        "https://www.dropbox.com/s/abc/a.jpg?dl=1",
        "https://dl.dropboxusercontent.com/s/abc/a.jpg",
        "https://i.imgur.com/JvR66Hc.jpg",
        "https://imgur.com/JvR66Hc.jpg",
        "https://github.com/o/r/blob/main/a.png?raw=true",
        "https://github.com/o/r/raw/main/a.png",
        "https://images.unsplash.com/photo-1",
        "https://upload.wikimedia.org/wikipedia/commons/a/a5/A.jpg",
        "https://example.com/file/d/1/view",
        "https://[::1",
        "",
    ],
)
def test_possible_image_url_is_not_taken_for_sharing_link(url: str) -> None:
    assert share_link(url) is None
