"""Recognizes sharing links of image services, which lead to a page about the image, not to its bytes. Pure."""

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

from apixo.urls import normalize_url

_DRIVE_FILE: Final = re.compile(r"(?:/a/[^/]+)?/file/(?:u/\d+/)?d/([\w-]+)")
_IMGUR_PAGE: Final = re.compile(r"/(?:\w+-)*(\w{5,8})/?")
_COMMONS_PAGE: Final = re.compile(r"/wiki/(?:File|Image|Datei|Fichier|Archivo):(.+)")
_WIKIMEDIA: Final = re.compile(r"(^|\.)(wikipedia|wikimedia)\.org$")
_GITHUB_PAGE: Final = re.compile(r"/([\w.-]+)/([\w.-]+)/blob/(.+)")
_UNSPLASH_PAGE: Final = re.compile(r"/(?:[a-z]{2}/)?photos/(?:[\w-]*-)?([\w-]{11})/?")
_PAGES_ONLY: Final = {
    "1drv.ms": "OneDrive",
    "onedrive.live.com": "OneDrive",
    "photos.app.goo.gl": "Google Photos",
    "photos.google.com": "Google Photos",
    "share.icloud.com": "iCloud",
    "www.icloud.com": "iCloud",
    "we.tl": "WeTransfer",
    "wetransfer.com": "WeTransfer",
}


def share_link(url: str) -> str | None:
    """What a sharing link is and what to give instead, for the user. None: it may be an image's URL."""
    found = _page(url)
    if found is None:
        return None
    service, instead = found
    return (
        f"is a link from {service} that opens a page about the image, not the image: "
        f"{instead or 'host the image where its own URL is public'}"
    )


def _page(url: str) -> tuple[str, str | None] | None:
    """The service, and how to get the image itself (None: the link does not show that). None: not a sharing link."""
    try:
        parts = urlsplit(normalize_url(url))
    except ValueError:
        return None
    host, path = (parts.hostname or "").removesuffix("."), parts.path
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    found: tuple[str, str | None] | None = None
    match host:
        case "drive.google.com" | "docs.google.com":
            named = _DRIVE_FILE.match(path)
            file_id = named[1] if named else query.get("id") if path in ("/open", "/file/open") else None
            direct = f"give https://drive.google.com/uc?export=download&id={file_id}"
            if "resourcekey" in query:  # a secret, so it is not repeated
                direct += ", followed by &resourcekey= as in the link"
            is_folder = "/folders/" in path
            found = ("Google Drive", direct if file_id else None) if file_id or is_folder else None
        case "www.dropbox.com" | "dropbox.com" if path.startswith(("/s/", "/scl/fi/")):
            # Only the change is given: the rest of the query is secret.
            is_direct = query.get("dl") == "1" or query.get("raw") == "1"
            found = None if is_direct else ("Dropbox", "give it with raw=1 instead of dl=0 at its end")
        case "www.dropbox.com" | "dropbox.com" if path.startswith(("/scl/fo/", "/sh/")):
            found = ("Dropbox", None)  # a folder
        case "imgur.com" | "www.imgur.com" | "m.imgur.com":
            image = _IMGUR_PAGE.fullmatch(path)
            is_album = path.startswith(("/a/", "/gallery/", "/t/"))
            instead = f"give https://i.imgur.com/{image[1]}.jpg" if image else None
            found = ("Imgur", instead) if image or is_album else None
        case "github.com" if (file := _GITHUB_PAGE.fullmatch(path)) and "raw" not in query:
            found = ("GitHub", f"give https://raw.githubusercontent.com/{file[1]}/{file[2]}/{file[3]}")
        case "unsplash.com" if photo := _UNSPLASH_PAGE.fullmatch(path):
            found = ("Unsplash", f"give https://unsplash.com/photos/{photo[1]}/download")
        case _ if _WIKIMEDIA.search(host) and (page := _COMMONS_PAGE.match(path)):
            found = ("Wikimedia", f"give https://commons.wikimedia.org/wiki/Special:FilePath/{page[1]}")
        case _ if host.endswith(".sharepoint.com") and re.match(r"/:\w:/", path) and "download" not in query:
            found = ("SharePoint", "give it with &download=1 at its end")
        case _ if host in _PAGES_ONLY:
            found = (_PAGES_ONLY[host], None)
    return found
