"""Saves the blocks from environment variables: `APIXO_<FIELD>` and `MINIO_<FIELD>`.

Repeating it changes nothing. What is not named keeps the value that the block has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from pydantic import SecretStr

from blocks import ApixoApi, VideoArchive
from deployments.connection import SetupError

B = TypeVar("B", bound=Block)

SECRET_BLOCKS: Final = {"api_key": "apixo-api-key", "callback_secret": "apixo-callback-secret"}
"""The field of `ApixoApi` and the Secret block that it refers to."""

Ask = Callable[[str, str, bool], str]
"""Asks a person: variable, description, whether it is secret."""

Outcome = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class SavedBlock:
    """What became of one block."""

    slug: str
    name: str
    outcome: Outcome


async def save_blocks(environ: Mapping[str, str], *, name: str = "default", ask: Ask | None = None) -> list[SavedBlock]:
    """Registers the block types and saves both blocks with their Secret blocks.

    Args:
        environ: where `APIXO_…` and `MINIO_…` are looked up.
        name: of both blocks.
        ask: asks for what is required and missing; None: that is an error.

    Raises:
        SetupError: something required is missing, named with its variable.
        ValidationError: a value is not one the block takes.
    """
    await Secret.register_type_and_schema()
    await ApixoApi.register_type_and_schema()
    await VideoArchive.register_type_and_schema()
    api = await _wanted(ApixoApi, name, "APIXO", environ, ask)
    archive = await _wanted(VideoArchive, name, "MINIO", environ, ask)
    saved = []
    for field, secret_name in SECRET_BLOCKS.items():
        value = api.get(field)
        if isinstance(value, Secret):
            if value._block_document_id is None:  # noqa: SLF001 - Prefect offers no other way to see it
                outcome = await _save_secret(secret_name, value)
                saved.append(SavedBlock("secret", secret_name, outcome))
                value = await Secret.aload(secret_name)
            api[field] = value
    saved.append(await _save(ApixoApi, name, api))
    saved.append(await _save(VideoArchive, name, archive))
    return saved


async def _wanted(
    block: type[Block], name: str, prefix: str, environ: Mapping[str, str], ask: Ask | None
) -> dict[str, Any]:
    """The fields as they should be: what the block has, overlaid with what the environment says."""
    stored = await _load(block, name)
    fields: dict[str, Any] = {}
    missing = []
    for field, info in block.model_fields.items():
        variable = f"{prefix}_{field.upper()}"
        secret = field in SECRET_BLOCKS or info.annotation is SecretStr
        text = environ.get(variable, "").strip()
        if not text and stored is not None:
            fields[field] = getattr(stored, field)
            continue
        if not text and info.is_required():
            if ask is None:
                missing.append(f"{variable} ({info.description})")
                continue
            text = ask(variable, info.description or field, secret)
        if text:
            fields[field] = Secret(value=text) if field in SECRET_BLOCKS else text
    if missing:
        raise SetupError(
            "Set these environment variables, or run `sora setup` on a terminal to be asked: " + "; ".join(missing)
        )
    return fields


async def _save(block: type[Block], name: str, fields: dict[str, Any]) -> SavedBlock:
    stored = await _load(block, name)
    wanted = block(**fields)
    slug = block.get_block_type_slug()
    if stored is not None and _plain(stored) == _plain(wanted):
        return SavedBlock(slug, name, "unchanged")
    await wanted.save(name, overwrite=True)
    return SavedBlock(slug, name, "updated" if stored is not None else "created")


async def _save_secret(name: str, wanted: Secret[Any]) -> Outcome:
    stored = await _load(Secret, name)
    if stored is not None and stored.value.get_secret_value() == wanted.value.get_secret_value():
        return "unchanged"
    await wanted.save(name, overwrite=True)
    return "updated" if stored is not None else "created"


async def _load(block: type[B], name: str) -> B | None:
    try:
        return await block.aload(name)
    except ValueError as error:
        if "Unable to find block document" in str(error):
            return None
        raise


def _plain(block: Block) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field in type(block).model_fields:
        value = getattr(block, field)
        if isinstance(value, Secret):
            value = value.value.get_secret_value()
        elif isinstance(value, SecretStr):
            value = value.get_secret_value()
        plain[field] = value
    return plain
