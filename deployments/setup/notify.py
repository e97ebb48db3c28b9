"""Notifications: Prefect automations that send messages to Slack, Discord, an email address or a webhook.

Repeating it changes nothing. The address is stored in a block, where Prefect keeps it secret, and nowhere else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect.blocks.core import Block
from prefect.blocks.notifications import DiscordWebhook, SendgridEmail, SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import get_current_settings
from pydantic import SecretStr, ValidationError

from deployments.connection import SetupError
from deployments.setup.blocks import Outcome, Saved, save_block

CHANNELS: Final = ("slack", "discord", "email", "webhook")
ADDRESS: Final = "SORA_NOTIFY_URL"
"""The environment variable for the address, which keeps it out of the shell's history."""


@dataclass(frozen=True, slots=True)
class _Message:
    """The message that is sent for an event."""

    name: str
    event: str
    subject: str
    body: str


_VIDEO: Final = '{{ event.payload.key }} ({{ event.payload.model }}): "{{ event.payload.request.prompt }}"'
MESSAGES: Final = (
    _Message(
        "failed", "sora.generation.failed", "A video failed: {{ event.payload.key }}",
        f"{_VIDEO}\nAPIXO says {{{{ event.payload.fail_code }}}}. The page below explains what to do.",
    ),
    _Message(
        "unconfirmed", "sora.generation.unconfirmed",
        "Payment unclear: {{ event.payload.key }} needs a manual decision",
        f"{_VIDEO}\nIt is not known whether it was paid, and it is not resubmitted automatically. Look in your APIXO "
        "account, then decide with the deployment resolve-video.",
    ),
    _Message(
        "expiring", "sora.generation.expiring", "A video is not archived yet: {{ event.payload.key }}",
        f"{_VIDEO}\nAPIXO deletes its result some time after it is finished. "
        "{% if event.payload.state == 'unconfirmed' %}It is not known whether it was paid: decide with the deployment "
        "resolve-video.{% else %}It is paid. Find out what keeps the deployment collect-videos from archiving it."
        "{% endif %}",
    ),
    _Message(
        "blocked", "sora.provider.blocked", "APIXO accepts no further videos",
        "The batch {{ event.payload.batch }} stopped: {{ event.payload.message }} Once this is fixed, its next run "
        "submits the remaining rows.",
    ),
    _Message(
        "budget", "sora.budget.low", "80 % of the budget of {{ event.payload.period }} is spent",
        "{{ event.payload.committed }} of {{ event.payload.limit }} {{ event.payload.currency }} are spent or reserved "
        "in {{ event.payload.period }}. At the limit nothing more is submitted.",
    ),
)  # fmt: skip


def parse(wanted: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The channel and its address.

    Args:
        wanted: such as `slack:https://hooks.slack.com/…`; without an address, that of `SORA_NOTIFY_URL`.

    Raises:
        SetupError: unknown channel, or no address. The message does not repeat the address.
    """
    channel, _, address = wanted.strip().partition(":")
    address = address.strip() or environ.get(ADDRESS, "").strip()
    if channel not in CHANNELS:
        raise SetupError(f"Unknown channel. Use one of {', '.join(f'{name}:…' for name in CHANNELS)}.")
    if not address:
        raise SetupError(f"The address is missing. Use {channel}:ADDRESS, or set {ADDRESS}.")
    return channel, address


async def notify(wanted: str, environ: Mapping[str, str]) -> list[Saved]:
    """Saves the block with the address, and an automation for each of `MESSAGES`.

    Raises:
        SetupError: the channel or its address is invalid.
    """
    channel, address = parse(wanted, environ)
    block = _block(channel, address, environ)
    name = f"sora-notify-{channel}"
    await type(block).register_type_and_schema()
    saved = [await save_block(block, name)]
    document = await type(block).aload(name)
    async with get_client() as client:
        for message in MESSAGES:
            automation = _automation(f"{name}-{message.name}", message, document)
            saved.append(Saved("automation", automation.name, await _save(client, automation)))
    return saved


def _block(channel: str, address: str, environ: Mapping[str, str]) -> Block:
    try:
        if channel == "email":
            missing = [name for name in ("SENDGRID_API_KEY", "SENDGRID_SENDER") if not environ.get(name)]
            if missing:
                raise SetupError(
                    f"Prefect sends email through SendGrid: set {' and '.join(missing)}. For another mail service use "
                    "webhook:… with a URL of that service."
                )
            to = [item.strip() for item in address.split(",")]
            key = SecretStr(environ["SENDGRID_API_KEY"])
            return SendgridEmail(api_key=key, sender_email=environ["SENDGRID_SENDER"], to_emails=to)
        if re.match(r"https?://[^/\s]+\S*$", address) is None:
            raise SetupError(f"The {channel} address must begin with https:// or http:// and contain no spaces.")
        if channel == "slack":
            return SlackWebhook(url=SecretStr(address))
        if channel == "webhook":
            return Webhook(method="POST", url=SecretStr(address))
        found = re.search(r"/webhooks/(\d+)/([\w-]+)", address)
        if found is None:
            raise SetupError("A Discord address looks like https://discord.com/api/webhooks/NUMBER/TOKEN.")
        return DiscordWebhook(webhook_id=SecretStr(found[1]), webhook_token=SecretStr(found[2]))
    except ValidationError:
        raise SetupError(f"The {channel} address is invalid.") from None  # not chained: the cause contains the address


def _automation(name: str, message: _Message, block: Block) -> AutomationCore:
    ui_url = (get_current_settings().ui_url or "").rstrip("/")
    artifact = f"{ui_url}/artifacts/key/{{{{ event.payload.artifact }}}}"
    run = f"{ui_url}/runs/flow-run/{{{{ item.resource.id | replace('prefect.flow-run.', '') }}}}"
    links = (
        f"{{% if event.payload.artifact %}}\nWhat happened: {artifact}{{% endif %}}"
        f"{{% for item in event.related if item.role == 'flow-run' %}}\nThe run: {run}{{% endfor %}}"
        if ui_url
        else ""
    )
    body = message.body + links
    document = block._block_document_id  # noqa: SLF001 - Prefect has no public attribute for it
    assert document is not None  # noqa: S101 - it was loaded
    payload = (
        '{"event": {{ event.event | tojson }}, "subject": {{ subject | tojson }}, '
        '"text": {{ text | tojson }}, "key": {{ event.payload.key | default("") | tojson }}}'
    )
    payload = f"{{% set subject %}}{message.subject}{{% endset %}}{{% set text %}}{body}{{% endset %}}{payload}"
    action: Any = (
        CallWebhook(block_document_id=document, payload=payload)
        if isinstance(block, Webhook)
        else SendNotification(block_document_id=document, subject=message.subject, body=body)
    )
    return AutomationCore(
        name=name,
        description=f"Sends a message when {message.event} happens. Created by `sora setup --notify`.",
        trigger=EventTrigger(expect={message.event}, posture=Posture.Reactive, threshold=1),
        actions=[action],
    )


async def _save(client: PrefectClient, wanted: AutomationCore) -> Outcome:
    """Creates or updates an automation. One that a user has turned off stays off."""
    found = await client.read_automations_by_name(wanted.name)
    if not found:
        await client.create_automation(wanted)
        return "created"
    same = {"name", "description", "actions"}
    kept = found[0]
    if kept.model_dump(include=same) == wanted.model_dump(include=same):
        return "unchanged" if kept.enabled else "stays off"
    await client.update_automation(kept.id, wanted.model_copy(update={"enabled": kept.enabled}))
    return "updated"
