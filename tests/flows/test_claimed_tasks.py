"""The task that a callback claims to be about: parsed from any body, and trusted only if the provider confirms it."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.sandbox import SandboxServer
from flows.callbacks import CallbackOutcome, parse_claimed_task_id
from flows.record import transitions
from flows.record.indexes import TaskOwner
from flows.resolution import resolve_as_task
from flows.resources import PayingResources
from tests.flows.generations import allow, fail, finished, lost, recorded, submit
from tests.support import made_outside
from tests.support.receiver import records

from .calls import call

BODIES: list[tuple[bytes, str | None]] = [
    (b'{"code": 200, "message": "success", "data": {"taskId": "task_1", "state": "success"}}', "task_1"),
    (b'{"code": 501, "message": "failed", "data": {"taskId": "task_1"}}', "task_1"),
    (b'{"taskId": "task_1"}', "task_1"),
    (b'{"data": null, "taskId": " task_1 "}', "task_1"),
    (b'{"data": {"taskId": "task_1"}, "taskId": "task_2"}', "task_1"),
    (b'{"data": {"taskId": 7}, "taskId": "task_2"}', "task_2"),
    ('{"taskId": "task_1"}'.encode("utf-16"), "task_1"),
    (b'\xef\xbb\xbf{"taskId": "task_1"}', "task_1"),
    (b'{"id": "call_1", "event": "task.completed", "task": {"id": "task_1", "status": "completed"}}', "task_1"),
    (b'{"id": "call_1", "type": "video.completed", "data": {"id": "task_1"}}', "task_1"),
    (b'{"id": "call_1", "status": "succeeded"}', None),
    (b'{"id": "call_1", "output": {"task_id": "task_1"}}', "task_1"),
    (b'{"data": {"id": 7}}', "7"),
    (b'{"task": {"id": null}, "id": []}', None),
    (b"<xml><TaskId>task_1</TaskId><State>success</State></xml>", "task_1"),
    (b"<?xml version='1.0'?>\n<r><task_id>\n  task_1\n</task_id></r>", "task_1"),
    (b"<r><TaskId></TaskId></r>", None),
    (b'--b\r\nContent-Disposition: form-data; name="taskId"\r\n\r\ntask_1\r\n--b--\r\n', "task_1"),
    (
        b'--b\r\nContent-Disposition: form-data; name="task_id"\r\nContent-Type: text/plain\r\n\r\ntask_1\r\n--b--',
        "task_1",
    ),
    (b'--b\r\nContent-Disposition: form-data; name="state"\r\n\r\nsuccess\r\n--b--\r\n', None),
    (b"<" + b"task_id\n" * 100_000, None),
    (b"<task_id>" + b" " * 100_000, None),
    (b"", None),
    (b"null", None),
    (b"[]", None),
    (b'"task_1"', None),
    (b"{}", None),
    (b'{"data": "task_1"}', None),
    (b'{"data": {"data": {"taskId": "task_1"}}}', "task_1"),
    (b'[{"result": [{"x": 1}, {"task_id": "task_1"}]}]', "task_1"),
    (b'{"TaskID": 12345678}', "12345678"),
    (b'{"taskId": true}', None),
    (b'{"data": "{\\"taskId\\": \\"task_1\\"}"}', "task_1"),
    (b"taskId=task_1&state=success", "task_1"),
    (b"data=%7B%22taskId%22%3A%22task_1%22%7D", "task_1"),
    (gzip.compress(b'{"data": {"taskId": "task_1"}}', mtime=0), "task_1"),
    (gzip.compress(b"taskId=task_1", mtime=0), "task_1"),
    (gzip.compress(b'{"taskId": "task_1"}', mtime=0)[:-12], None),
    (gzip.compress(b" " * 2_000_000 + b'{"taskId": "task_1"}', 1, mtime=0), None),
    (b"\x1f\x8b junk", None),
    (b"taskId=a&" * 1_000, None),
    (b'{"taskId": null}', None),
    (b'{"taskId": "null"}', None),
    (b'{"taskId": "  "}', None),
    (b'{"taskId": "task\\n1"}', None),
    (b'{"taskId": "\\ud800"}', None),
    (json.dumps({"taskId": "t" * 201}).encode(), None),
    (b'{"taskId": ["task_1"]}', None),
    (b'{"taskId": "task_1"', None),
    (b"\xff\xfe\xfd", None),
    (b"<!doctype html>\x00 not json {", None),
    (b"[" * 100_000, None),
    (b'{"data": ' * 100_000, None),
    (b'{"taskId": ' + b"9" * 10_000 + b"}", None),
]


@pytest.mark.parametrize(("body", "claimed_task_id"), BODIES, ids=[repr(body[:40]) for body, _ in BODIES])
def test_claimed_task_id_is_parsed_from_the_body(body: bytes, claimed_task_id: str | None) -> None:
    assert parse_claimed_task_id(body) == claimed_task_id


@given(
    st.one_of(st.binary(), st.recursive(st.text() | st.none() | st.floats(), st.lists).map(json.dumps).map(str.encode))
)
def test_no_body_breaks_the_parsing_of_the_claimed_task_id(body: bytes) -> None:
    claimed_task_id = parse_claimed_task_id(body)
    assert claimed_task_id is None or claimed_task_id.isprintable()


async def test_claimed_task_is_ignored_if_it_is_unknown_or_belongs_to_another_key(
    key: str, resources: PayingResources, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    await lost(key, resources, sandbox)
    other = (await submit(f"{key}.other", resources)).task_id
    before = await records(resources)
    for claimed_task_id, why in [
        ("task_ffffffffffff", "does not know it"),
        (other, f"belongs to {key}.other"),
        (None, f"sora resolve {key} --task-id"),
    ]:
        assert await call(key, resources, claimed_task_id) is CallbackOutcome.UNIDENTIFIED
        assert why in caplog.text
        assert f"sora resolve {key} --resubmit" in caplog.messages[-1]
    assert await records(resources) == before
    assert len(sandbox.record.submits()) == 2


async def test_claimed_task_of_another_attempt_of_the_same_key_is_not_adopted(
    key: str, resources: PayingResources, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    await lost(key, resources, sandbox)
    await allow(key, resources)
    second = (await submit(key, resources)).task_id
    before, requested = await records(resources), len(sandbox.record.statuses())
    assert await call(key, resources, second, attempt=1) is CallbackOutcome.UNIDENTIFIED
    assert await records(resources) == before
    assert len(sandbox.record.statuses()) == requested
    assert "attempt 1" in caplog.messages[-1]
    assert "--task-id" in caplog.messages[-1]


async def test_claimed_task_that_a_user_replaced_stays_with_its_own_attempt(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """The store must not list it under the second attempt either: it would count as that attempt's answer."""
    first = (await submit(key, resources)).task_id or ""
    await resolve_as_task(await recorded(key, resources), await made_outside(resources.api), resources)
    await fail(key, resources, sandbox)
    await allow(key, resources)
    await lost(key, resources, sandbox)
    before = await records(resources), await resources.ledger.tasks.owner(first)
    assert await call(key, resources, first, attempt=2) is CallbackOutcome.UNIDENTIFIED
    assert (await records(resources), await resources.ledger.tasks.owner(first)) == before


async def test_claimed_task_that_contradicts_the_ledger_is_recorded_as_superseded(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """This happens if a proxy sends the paid call twice."""
    task_id = (await submit(key, resources)).task_id
    other_task = await made_outside(resources.api)
    await finished(sandbox)
    assert await call(key, resources, other_task) is CallbackOutcome.FINISHED
    assert [request.task_id for request in sandbox.record.statuses()] == [other_task, task_id]
    found = await recorded(key, resources)
    assert found.task_id == task_id
    assert [task.task_id for task in found.unarchived_superseded] == [other_task]


async def test_claimed_task_that_races_with_the_reply_is_recorded_as_superseded(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, other_task = await lost(key, resources, sandbox), await made_outside(resources.api)
    tasks = resources.ledger.tasks
    bind = tasks.bind

    async def bind_after_the_reply(*arguments: Any, **named: Any) -> TaskOwner:
        owner = await bind(*arguments, **named)
        monkeypatch.undo()
        await tasks.bind(task_id, key, 1)  # the reply to the paid call arrives after all
        await resources.ledger.change(
            key, lambda now: transitions.submitted(now, attempt_number=1, task_id=task_id, now=resources.clock.now())
        )
        return owner

    monkeypatch.setattr(tasks, "bind", bind_after_the_reply)
    await call(key, resources, other_task)
    found = await recorded(key, resources)
    assert found.task_id == task_id
    assert [task.task_id for task in found.unarchived_superseded] == [other_task]
    for task in (task_id, other_task):
        owner = await tasks.owner(task)
        assert owner is not None
        assert (owner.key, owner.attempt_number) == (key, 1)
