"""Reads the bucket settings that may affect the ledger: lifecycle rules, retention, versioning, the store's release.

If a store does not support a setting, or the key may not read it, the setting is unknown. That is not an error.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

import httpx

from blocks.s3_clients import StoreConnection

LEDGER_FOLDERS: Final = ("ledger/", "open/", "tasks/", "requests/", "budget/")
"""Must be kept as long as their keys are in use: a key whose record has expired is unknown, and would be paid again."""
FIXED_RELEASE: Final = "2025-10-16"
"""MinIO up to RELEASE.2025-10-15T17-29-55Z accepts a conditional write if too few of its drives answer to check the
condition (https://github.com/minio/minio/issues/21603). A single drive is not affected."""
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_OFFLINE: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects must be restored before they can be read."""


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """An enabled rule that deletes current objects, or moves them to a class that cannot be read directly.

    The name, its ID, may be empty. An empty prefix applies to every object.
    """

    name: str
    prefix: str
    effect: str

    def __str__(self) -> str:
        """The rule in a message."""
        return f"{self.name or 'without a name'} ({self.effect} {f'{self.prefix}*' if self.prefix else 'everything'})"

    def covers(self, folder: str) -> bool:
        """Whether it applies to any object in a folder."""
        return folder.startswith(self.prefix) or self.prefix.startswith(folder)


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """The settings of a bucket that could be read.

    Attributes:
        retention: the default retention of an object lock, such as `COMPLIANCE for 30 days`; empty: none is known.
        stale_release: the release, if it is a MinIO older than `FIXED_RELEASE` on several drives; else empty.
    """

    rules: tuple[LifecycleRule, ...] = ()
    retention: str = ""
    versioned: bool = False
    stale_release: str = ""

    def against_the_ledger(self) -> list[LifecycleRule]:
        """The rules that would remove records or markers."""
        return [rule for rule in self.rules if any(rule.covers(folder) for folder in LEDGER_FOLDERS)]

    def notes(self) -> list[str]:
        """Settings that are worth knowing but need no change."""
        found = [f"lifecycle rule {rule}" for rule in self.rules if rule.covers("videos/")]
        if self.retention:
            found.append(f"retention {self.retention}: no version can be deleted earlier")
        if self.versioned:
            found.append("versioned: a lifecycle rule for noncurrent versions keeps it small")
        return found


def read_settings(connection: StoreConnection, bucket: str) -> BucketSettings:
    """Reads the bucket's settings from the store. Blocks."""
    lifecycle, lock, versioning = (
        _signed_get(connection, f"{connection.bucket_url(bucket)}?{name}=")
        for name in ("lifecycle", "object-lock", "versioning")
    )
    return BucketSettings(
        rules=parse_rules(lifecycle),
        retention=parse_retention(lock),
        versioned=_text(_xml(versioning), "Status") == "Enabled",
        stale_release=_stale_release(connection),
    )


def _stale_release(connection: StoreConnection) -> str:
    """See `BucketSettings.stale_release`. The request needs the permission `admin:ServerInfo`."""
    if not _is_minio(connection):
        return ""  # in other stores, this URL would be an object in a bucket
    try:
        info = json.loads(_signed_get(connection, f"{connection.url}/minio/admin/v3/info") or "{}")
        servers = info.get("servers") or []
        drives = sum(len(server.get("drives") or []) for server in servers)
        releases = sorted(str(server.get("version", "")) for server in servers)
    except (ValueError, AttributeError, TypeError):
        return ""
    dated = [release for release in releases if release[:2] == "20"]  # a build from source has no date
    return dated[0] if drives > 1 and dated and dated[0] < FIXED_RELEASE else ""


def parse_rules(lifecycle: str) -> tuple[LifecycleRule, ...]:
    """The rules of a LifecycleConfiguration that remove current objects. Pure.

    Rules for tagged objects are left out: ours have no tags.
    """
    rules = []
    for rule in _xml(lifecycle).findall("{*}Rule"):
        if _text(rule, "Status") != "Enabled" or rule.findall(".//{*}Tag"):
            continue
        effects = [
            *("deletes" for found in rule.findall("{*}Expiration") if _text(found, "Days") or _text(found, "Date")),
            *(
                f"moves to {_text(found, 'StorageClass')}"
                for found in rule.findall("{*}Transition")
                if _text(found, "StorageClass") in _OFFLINE
            ),
        ]
        if effects:
            rules.append(LifecycleRule(_text(rule, "ID"), _text(rule, "Prefix"), effects[0]))
    return tuple(rules)


def parse_retention(lock: str) -> str:
    """The default retention of an ObjectLockConfiguration; empty: there is none. Pure."""
    document = _xml(lock)
    mode = _text(document, "Mode")
    unit = "Days" if _text(document, "Days") else "Years"
    return f"{mode} for {_text(document, unit)} {unit.lower()}" if mode else ""


def _signed_get(connection: StoreConnection, address: str) -> str:
    """The body of a successful answer, else an empty string.

    Signed by minio-py, whose own calls accept only what its data classes know.
    """
    with suppress(httpx.HTTPError), connection.http() as http:
        response = http.get(address, headers=connection.signed("GET", address, {}, _EMPTY_SHA256))
        return response.text if response.status_code == 200 else ""
    return ""


def _is_minio(connection: StoreConnection) -> bool:
    with suppress(httpx.HTTPError), connection.http() as http:
        return str(http.head(connection.url).headers.get("server", "")).startswith("MinIO")
    return False


def _xml(body: str) -> ET.Element:
    """Parses a document; returns an empty one if the text is not XML."""
    try:
        return ET.fromstring(body)  # noqa: S314 - it comes from the store that keeps the ledger
    except ET.ParseError:
        return ET.Element("Nothing")


def _text(element: ET.Element, name: str) -> str:
    """The text of the first such element at any depth: a prefix may be in a rule, its filter, or an And."""
    return element.findtext(f".//{{*}}{name}", "").strip()
