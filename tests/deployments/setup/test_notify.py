"""Notifications that Prefect's automations send to a webhook on loopback."""

import asyncio
from collections.abc import Iterator
from decimal import Decimal

import pytest
from jinja2 import Template
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker

from deployments.connection import SetupError
from deployments.local.prefect_server import PrefectServer
from deployments.setup.notify import MESSAGES, notify, parse
from flows.record.generation import Problem
from flows.signals.events import emit, emit_blocked, emit_budget_low
from tests.flows.record.changes import claimed, fail, lose, submit
from tests.support import KITE
from tests.support.waiting import until
from tests.support.webhook import Webhook, webhook


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook("/hook?token=very-secret") as opened:
        yield opened


async def test_each_message_reaches_the_webhook_and_second_setup_changes_nothing(
    prefect_server: PrefectServer, hook: Webhook
) -> None:
    first_run = await notify(f"webhook:{hook.url}", {})
    assert [item.outcome for item in first_run] == ["created"] * (1 + len(MESSAGES))
    second_run = await notify("webhook", {"SORA_NOTIFY_URL": hook.url})
    assert [item.outcome for item in second_run] == ["unchanged"] * (1 + len(MESSAGES))
    async with get_client() as client:
        automations = [
            found
            for item in MESSAGES
            for found in await client.read_automations_by_name(f"sora-notify-webhook-{item.name}")
        ]
        documents = await client.read_block_documents(include_secrets=False)
    assert len(automations) == len(MESSAGES)
    for shown in (*first_run, *automations, *documents):
        assert "very-secret" not in str(shown)
    await asyncio.to_thread(
        EventsWorker.drain_all, timeout=60
    )  # called in the event loop, it would only return an awaitable
    unclear = lose(claimed())
    problem = Problem(kind="InsufficientBalanceError", code="402", message="The balance is too low.")
    emit("failed", fail(submit(claimed()), code="CONTENT_VIOLATION"), fail_code="CONTENT_VIOLATION")
    emit("unconfirmed", unclear)
    emit("expiring", submit(claimed()), age_days=13)
    emit_blocked("spring", problem)
    emit_budget_low("2026-11", limit=Decimal(50), committed=Decimal("41.20"), currency="USD")
    await asyncio.to_thread(EventsWorker.drain_all, timeout=60)

    async def received() -> bool:
        return len(hook.bodies) + hook.lost == len(MESSAGES)

    await until(received, what="all messages")
    messages = {item["event"]: item for item in hook.messages()}
    for event, subject, text in (
        ("sora.generation.failed", "A video failed: kite", "APIXO says CONTENT_VIOLATION."),
        (
            "sora.generation.unconfirmed",
            "Payment unclear: kite needs a manual decision",
            "the deployment resolve-video",
        ),
        ("sora.generation.expiring", "A video is not archived yet: kite", "after it is finished. It is paid."),
        (
            "sora.provider.blocked",
            "APIXO accepts no further videos",
            "The batch spring stopped: The balance is too low.",
        ),
        ("sora.budget.low", "80 % of the budget of 2026-11 is spent", "41.20 of 50 USD"),
    ):
        if event not in messages and hook.lost:
            continue
        assert messages[event]["subject"] == subject
        assert text in messages[event]["text"]
        print(f"\n{messages[event]['subject']}\n{messages[event]['text']}")
        if event.startswith("sora.generation."):
            assert KITE.prompt[:100] in messages[event]["text"]
            ui_url = prefect_server.api_url.removesuffix("/api")
            assert f"What happened: {ui_url}/artifacts/key/video-kite" in messages[event]["text"]
    assert len(hook.bodies) + hook.lost == len(MESSAGES)
    assert len(hook.bodies) > 0


@pytest.mark.parametrize(("state", "paid"), [("unconfirmed", False), ("submitted", True), ("succeeded", True)])
def test_expiring_message_says_paid_only_if_the_video_is(state: str, paid: bool) -> None:
    (message,) = [item for item in MESSAGES if item.name == "expiring"]
    event = {"payload": {"key": "kite", "state": state, "request": {}}}
    subject, body = (Template(text).render(event=event) for text in (message.subject, message.body))
    assert "paid" not in subject
    assert ("It is paid." in body, "resolve-video" in body) == (paid, not paid)


@pytest.mark.parametrize("wanted", ["pigeon:https://x", "https://hooks.slack.com/secret", "", "slack", "slack:"])
def test_invalid_notification_target_is_rejected_without_echoing_it(wanted: str) -> None:
    with pytest.raises(SetupError) as rejected:
        parse(wanted, {})
    assert "secret" not in str(rejected.value)


@pytest.mark.parametrize(
    "wanted", ["slack:not-an-address-secret", "discord:https://discord.com/secret", "email:ann@example.com"]
)
async def test_invalid_notification_url_is_rejected_without_echoing_it(wanted: str) -> None:
    with pytest.raises(SetupError) as rejected:
        await notify(wanted, {})
    assert "secret" not in str(rejected.value)
