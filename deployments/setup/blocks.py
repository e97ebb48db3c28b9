"""Saves the blocks from environment variables: `APIXO_<FIELD>` and `MINIO_<FIELD>`.

Repeating it changes nothing. Fields without a variable keep their value in the block.
"""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeVar

from prefect.blocks.core import Block, UnknownBlockType
from prefect.blocks.system import Secret
from pydantic import Secret as PydanticSecret
from pydantic import SecretStr, ValidationError

from apixo import ApixoError
from blocks import ApixoApi, VideoArchive
from blocks.object_store import PROBE
from blocks.probe import ensure_ready, mark_raced, problems
from blocks.store_errors import StoreError, WrongAddressError
from deployments.connection import SetupError
from flows.checks import check_api

B = TypeVar("B", bound=Block)

SECRET_BLOCKS: Final = {"api_key": "apixo-api-key", "callback_secret": "apixo-callback-secret"}
"""Fields of `ApixoApi`, each with its Secret block. For blocks not named `default`, their name is appended."""

ASKED_AS: Final = {
    "api_key": "Your APIXO API key. It is stored in a Secret block.",
    "callback_secret": "Any long random text. It is stored in a Secret block.",
    "endpoint": "Host and port of MinIO, with http:// in front if it has no TLS.",
}
"""What the prompt shows for these fields instead of their description."""

ADDRESS_FIELDS: Final = ("endpoint", "region", "virtual_host")
"""Fields that the store's answer may correct."""
AWS_ENDPOINT: Final = re.compile(r"s3(\.[a-z0-9-]+)?\.amazonaws\.com")
"""With AWS, path-style access works only at the endpoint of the bucket's own region."""

Ask = Callable[[str, str, bool], str]
"""Prompts the user for a value. Arguments: variable, description, whether it is secret."""

Outcome = Literal["created", "updated", "unchanged", "kept", "stays on", "stays off", "removed", "found"]


@dataclass(frozen=True, slots=True)
class Saved:
    """The outcome for one object of the setup: a block, the bucket, a deployment."""

    slug: str
    name: str
    outcome: Outcome


async def save_blocks(
    environ: Mapping[str, str],
    *,
    name: str = "default",
    ask: Ask | None = None,
    reset: Collection[str] = (),
    check: bool = False,
) -> list[Saved]:
    """Registers the block types and saves both blocks with their Secret blocks.

    Args:
        environ: contains `APIXO_…` and `MINIO_…`.
        ask: prompts for missing required fields; None: a missing field is an error.
        reset: fields that are reset to their defaults if they are not in `environ`.
        check: whether both blocks are tested before anything is saved: see `check_blocks`.

    Raises:
        SetupError: required fields are missing, listed with their variables; `reset` has an unknown field; or the
            API or the store does not accept what is tested.
        ValidationError: a value is invalid.
    """
    optional = {
        field for block in (ApixoApi, VideoArchive) for field, info in block.model_fields.items()
        if not info.is_required()
    }  # fmt: skip
    if unknown := set(reset) - optional:
        raise SetupError(
            f"No optional field is called {', '.join(sorted(unknown))}. There are: {', '.join(sorted(optional))}."
        )
    await Secret.register_type_and_schema()
    await ApixoApi.register_type_and_schema()
    await VideoArchive.register_type_and_schema()
    wanted = partial(_wanted, name=name, environ=environ, ask=ask, reset=reset)
    (api, missing), (archive, also_missing) = await wanted(ApixoApi, "APIXO"), await wanted(VideoArchive, "MINIO")
    if missing or also_missing:
        raise SetupError(
            "Set these environment variables, or run `sora setup` on a terminal, which asks for them:\n  "
            + "\n  ".join(missing + also_missing)
        )
    saved: list[Saved] = []
    made = ApixoApi(**api), VideoArchive(**archive)  # to find an invalid value before anything is saved
    if check:
        found = await check_blocks(*made)
        for field in ADDRESS_FIELDS:
            value = getattr(found, field)
            if value != getattr(made[1], field):
                saved.append(Saved(field, str(value), "found"))
            archive[field] = value
    for field, stem in SECRET_BLOCKS.items():
        secret_name = stem if name == "default" else f"{stem}-{name}"
        value = api.get(field)
        if isinstance(value, Secret):
            if value._block_document_id is None:  # noqa: SLF001 - Prefect has no public attribute for it
                saved.append(await save_block(value, secret_name))
                value = await Secret.aload(secret_name)
            api[field] = value
    return [*saved, await save_block(ApixoApi(**api), name), await save_block(VideoArchive(**archive), name)]


async def check_blocks(api: ApixoApi, archive: VideoArchive) -> VideoArchive:
    """Checks that the API and the store accept their keys. Pays and changes nothing.

    Returns:
        The archive, with another region or addressing style if the store requires that.

    Raises:
        SetupError: one of them rejects its key or cannot be reached. The message says which.
    """
    unsaved = "Nothing was saved. Fix it, or save it untested with --no-check."
    try:
        async with api.status_client() as client:
            await check_api(client)
    except (ApixoError, ValueError) as error:
        raise SetupError(f"APIXO: {error} {unsaved}") from error
    try:
        return await _with_required_settings(archive)
    except StoreError as error:
        raise SetupError(f"The store at {archive.endpoint}: {error} {unsaved}") from error


async def _with_required_settings(archive: VideoArchive, tries: int = 3) -> VideoArchive:
    """The archive with the settings that its store requires, which may take two corrections: of style and of region."""
    try:
        async with aclosing(archive.store()) as store:
            await store.get(PROBE)
    except WrongAddressError as error:
        if tries == 1:
            raise
        return await _with_required_settings(_corrected(archive, error), tries - 1)
    except StoreError as error:
        if error.code != "NoSuchBucket":  # it will be created
            raise
    return archive


def _corrected(archive: VideoArchive, error: WrongAddressError) -> VideoArchive:
    changed: dict[str, Any] = {}
    if error.virtual_host:
        changed["virtual_host"] = True
    if error.region:
        changed["region"] = error.region
        if AWS_ENDPOINT.fullmatch(archive.endpoint):
            changed["endpoint"] = f"s3.{error.region}.amazonaws.com"
    return VideoArchive(**({field: getattr(archive, field) for field in VideoArchive.model_fields} | changed))


async def make_bucket(archive: VideoArchive, *, known: bool = False) -> Saved:
    """Creates the archive's bucket if it is missing. Only setup does this: see `blocks.probe`.

    Args:
        known: whether it is the local stack's store. That needs no race: the tests cover its kinds.

    Raises:
        StoreError: the archive does not answer, rejects the keys, or ignores conditions.
    """
    async with aclosing(archive.store()) as store:
        created = await store.create_bucket()
        if known:
            await mark_raced(store)
            await ensure_ready(store)
        elif errors := await problems(store):
            raise errors[0]
    return Saved("bucket", store.bucket, "created" if created else "unchanged")


async def _wanted(
    block: type[Block], prefix: str, *, name: str, environ: Mapping[str, str], ask: Ask | None, reset: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """The fields of the block, overridden by the environment, and descriptions of those that are missing."""
    stored = await _load(block, name)
    fields: dict[str, Any] = {}
    missing: list[str] = []
    for field, info in block.model_fields.items():
        variable = f"{prefix}_{field.upper()}"
        secret = field in SECRET_BLOCKS or info.annotation is SecretStr
        text = environ.get(variable, "").strip()
        if not text and stored is not None and field not in reset:
            fields[field] = getattr(stored, field)
            continue
        if not text and info.is_required():
            described = ASKED_AS.get(field, info.description or field)
            text = ask(variable, described, secret).strip() if ask is not None else ""
            if not text:
                missing.append(f"{variable}: {described}")
                continue
        if text:
            fields[field] = Secret(value=text) if field in SECRET_BLOCKS else text
    scheme, separator, rest = str(fields.get("endpoint", "")).partition("://")
    if separator:  # an endpoint with a scheme, as MinIO's own tools print it
        fields["endpoint"] = rest.rstrip("/")
        if not environ.get(f"{prefix}_SECURE", "").strip():
            fields["secure"] = scheme == "https"
    return fields, missing


async def save_block(wanted: Block, name: str) -> Saved:
    """Saves a block, unless it is unchanged."""
    stored = await _load(type(wanted), name)
    outcome: Outcome = "created" if stored is None else "updated"
    if stored is not None and _plain(stored) == _plain(wanted):
        outcome = "unchanged"
    else:
        await wanted.save(name, overwrite=True)
    return Saved(wanted.get_block_type_slug(), name, outcome)


async def _load(block: type[B], name: str) -> B | None:
    try:
        return await block.aload(name)
    except (ValueError, UnknownBlockType, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, ValidationError):
            raise
        # There is no block, or one that this version cannot read, such as one with a removed field. Either way it is
        # created from the environment, and the user is prompted for what is missing.
        return None


def _plain(block: Block) -> dict[str, Any]:
    return {field: _revealed(getattr(block, field)) for field in type(block).model_fields}


def _revealed(value: Any) -> Any:
    if isinstance(value, Secret):
        value = value.value
    return value.get_secret_value() if isinstance(value, SecretStr | PydanticSecret) else value
