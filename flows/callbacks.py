"""Handles callbacks from the provider, without the HTTP part.

A callback only triggers a check; nothing in it is trusted. The task id in it is a claim: nothing is written before
`statusTask` has confirmed that task. So a forged, repeated, early, late or junk call changes nothing. A genuine call
reconciles a generation whose payment was unclear, because its URL names the key and the attempt.

Nothing here records how a task ended. Waiting runs and the collector do that. An event notifies them and contains the
provider's answer, so that the provider is polled only once.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs

from apixo import BadRequestError, Status
from apixo.redaction import excerpt, hide_secret
from apixo.replies import Failed, Succeeded, usable_task_id
from blocks.store_errors import StoreError
from flows.record import superseded_tasks, transitions
from flows.record.advice import unconfirmed_error
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import LedgerError
from flows.resources import Resources
from flows.signals.events import emit
from flows.signals.handed_over import sealed
from flows.signals.progress import run_logger
from flows.task_end import take_back_failure
from flows.wording import utc

Notify = Callable[[str, str, str | None], None]
"""Called with a key, its task that has ended, and the sealed status of how it ended."""

NOTE: Final = "its callback named the task"
"""The note of an attempt that a callback reconciled."""

GZIP_MAGIC: Final = b"\x1f\x8b"
MOST_UNPACKED_BYTES: Final = 1_048_576
"""How much of a gzipped body is decompressed."""
MARKED_UP: Final = re.compile(
    r"""task[_-]?id["']?(?:>|[^\S\n]*\n(?:[\w-]+:[^\n]*\n){0,5}[^\S\n]*\n)\s{0,100}([^\s<>]+)""", re.IGNORECASE
)
"""A task id in XML or in a multipart form."""
TOKEN: Final = re.compile(r"\b[0-9a-fA-F]{64}\b")
"""The token of any callback URL."""
MOST_SHOWN_BYTES: Final = 20_000
"""How much of a body is searched for secrets, before it is shortened further and logged."""


class CallbackOutcome(StrEnum):
    """The result of a callback."""

    FINISHED = "finished"
    """The task has ended; the runs that wait for it were notified."""
    PENDING = "pending"
    """The task has not ended."""
    ALREADY_HANDLED = "already handled"
    """There is nothing left to do. The provider was not polled."""
    UNIDENTIFIED = "unidentified"
    """The ledger has no task for this attempt, and the call named none that could be confirmed."""
    UNKNOWN = "unknown"
    """The ledger has no such generation or attempt."""


def parse_claimed_task_id(body: bytes) -> str | None:
    """The task id that a call names; None if it names none. Never raises.

    The body is hardly documented: the provider's pages only say that it is the envelope of the status reply. So the id
    is searched in JSON at any depth, in a form or XML, each possibly gzipped. The id at `data.taskId` comes first, then
    the outermost one, text before numbers, and last the `id` of a `task` or of `data`.
    """
    content = _content(body)
    data = content.get("data") if isinstance(content, dict) else None
    documented = data.get("taskId") if isinstance(data, dict) else None
    if isinstance(documented, str) and (named_there := usable_task_id(documented)):
        return named_there
    named = list(_named_task_ids(content))
    texts = [value for value in named if isinstance(value, str)]
    numbers = [str(value) for value in named if isinstance(value, int) and not isinstance(value, bool)]
    return next(
        (task_id for value in (*texts, *numbers, *_plain_ids(content)) if (task_id := usable_task_id(value))), None
    )


def shown_body(body: bytes, *secrets: str) -> str:
    """The beginning of a body, safe for the log: on one line, without these secrets and signatures.

    Args:
        secrets: our secrets that the provider knows and may repeat, such as the token in the callback URL.
    """
    with contextlib.suppress(zlib.error):
        body = _unpacked(body)
    text = body[:MOST_SHOWN_BYTES].decode("utf-8", "replace")
    for secret in secrets:
        text = hide_secret(text, secret)
    text = TOKEN.sub("***", text)
    return excerpt(text.encode()) or "(empty)"


def _unpacked(body: bytes) -> bytes:
    if body.startswith(GZIP_MAGIC):
        return zlib.decompressobj(wbits=31).decompress(body, MOST_UNPACKED_BYTES)
    return body


def _content(body: bytes) -> Any:
    """Parses a body as JSON, XML or a form; None if it is none of these."""
    with contextlib.suppress(ValueError, RecursionError, zlib.error):
        body = _unpacked(body)
        return json.loads(body)
    with contextlib.suppress(ValueError):  # not UTF-8, or more fields than any callback has
        if body.lstrip()[:1] in (b"<", b"-"):
            return {"taskId": found[1]} if (found := MARKED_UP.search(body.decode())) else None
        return {name: _inner(values[0]) for name, values in parse_qs(body.decode(), max_num_fields=100).items()}
    return None


def _inner(text: str) -> Any:
    """Parses text that is a JSON object, as in forms; returns any other text as it is."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text) if text.lstrip().startswith("{") else text
    return text


def _plain_ids(content: Any) -> Iterator[Any]:
    """The `id` in an object named `task` or `data`. At the outermost level, `id` is usually the call's own."""
    if isinstance(content, dict):
        yield from (inner.get("id") for name in ("task", "data") if isinstance(inner := content.get(name), dict))


def _named_task_ids(content: Any) -> Iterator[Any]:
    """Every value named `taskId`, in any spelling, the outermost first."""
    level = [content]
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                yield from (found for name, found in value.items() if name.replace("_", "").lower() == "taskid")
                below.extend(_inner(found) if isinstance(found, str) else found for found in value.values())
            elif isinstance(value, list):
                below.extend(value)
        level = below


async def answer_call(
    key: str, attempt_number: int, claimed_task_id: str | None, resources: Resources, *, notify: Notify
) -> CallbackOutcome:
    """Handles a call about an attempt. Polls the provider at most once per task, and only if necessary.

    Args:
        key, attempt_number: from the call's URL, whose token the caller has checked.
        notify: called when the generation's task has ended.

    Raises:
        ApixoError: the provider could not be polled. Nothing was written.
        StoreError: the ledger did not answer.
        LedgerError: a record cannot be read.
    """
    entry = await resources.ledger.read(key)
    if entry is None or not 1 <= attempt_number <= len(entry.generation.attempts):
        run_logger().error(
            "APIXO called back for attempt %d of %s, which this ledger does not have. Nothing was changed. Does the "
            "receiver use the video-archive block that it was submitted with?", attempt_number, key,
        )  # fmt: skip
        return CallbackOutcome.UNKNOWN
    found, status = entry.generation, None
    known = found.attempts[attempt_number - 1].task_id
    if known is None:
        status = await _verified(found, attempt_number, claimed_task_id, resources)
        if claimed_task_id is None or status is None:
            run_logger().warning("%s", _unidentified(found, attempt_number, resources.options))
            return CallbackOutcome.UNIDENTIFIED
        found = await _reconcile(found, attempt_number, claimed_task_id, resources)
        known = found.attempts[attempt_number - 1].task_id
        if known != claimed_task_id:  # the paid call has recorded another one meanwhile
            status = None
    elif claimed_task_id is not None and claimed_task_id not in found.task_ids:
        run_logger().warning(
            "A callback for %s names task %s. Its task is %s; that one counts.", key, claimed_task_id, known
        )
        if await _verified(found, attempt_number, claimed_task_id, resources) is not None:
            found = await _record_alongside(found, attempt_number, claimed_task_id, resources)
    if known is not None and found.attempts[attempt_number - 1].state is State.FAILED:
        status = await resources.client.status_once(known, model=found.attempts[attempt_number - 1].model)
        if isinstance(status, Succeeded):
            found = (await take_back_failure(key, attempt_number, known, resources)).generation
            if found.task_id != known and found.attempts[attempt_number - 1].state is not State.FAILED:
                run_logger().error("%s", _paid_twice(found, attempt_number, known, resources.options))
    if found.state is not State.SUBMITTED or found.task_id != known:
        return CallbackOutcome.ALREADY_HANDLED
    task_id = found.task_id or ""
    status = status or await resources.client.status_once(task_id, model=found.attempt.model)
    if not isinstance(status, Succeeded | Failed):
        return CallbackOutcome.PENDING
    notify(key, task_id, sealed(status, resources.api))
    return CallbackOutcome.FINISHED


async def _verified(found: Generation, number: int, claimed_task_id: str | None, resources: Resources) -> Status | None:
    """The provider's status of the task that a call named; None if it cannot be a new task of this generation."""
    if claimed_task_id is None:
        return None
    if claimed_task_id in found.task_ids:
        run_logger().warning(
            "A callback for %s names task %s, which belongs to another attempt.", found.key, claimed_task_id
        )
        return None
    try:
        status = await resources.client.status_once(claimed_task_id, model=found.attempts[number - 1].model)
    except BadRequestError as error:
        run_logger().warning(
            "A callback for %s names task %s, and APIXO does not know it: %s", found.key, claimed_task_id, error.message
        )
        return None
    owner = await resources.ledger.tasks.owner(claimed_task_id)
    if owner is not None and owner.key != found.key:
        run_logger().warning(
            "A callback for %s names task %s, which belongs to %s.", found.key, claimed_task_id, owner.key
        )
        return None
    return status


async def _reconcile(found: Generation, number: int, task_id: str, resources: Resources) -> Generation:
    """Records the confirmed task in its attempt, or as superseded if another one has been recorded meanwhile."""
    key, ledger = found.key, resources.ledger

    def how(current: Generation) -> Generation:
        if current.attempts[number - 1].task_id is not None or task_id in current.task_ids:
            return current
        return transitions.submitted(
            current, attempt_number=number, task_id=task_id, now=resources.clock.now(), named_by="callback", note=NOTE
        )

    try:
        if not await _bind(task_id, found, number, ledger):
            return found
        reconciled = (await ledger.change(key, how)).generation
        if task_id not in reconciled.task_ids:  # the reply or a user named another task meanwhile
            return await _record_alongside(reconciled, number, task_id, resources)
    except (StoreError, LedgerError) as error:
        run_logger().error(
            "APIXO called back for %s and knows task %s, but the ledger could not be written: %s If no later call "
            "fixes it, run: sora resolve %s --task-id %s%s", key, task_id, error, key, task_id, resources.options,
        )  # fmt: skip
        raise
    attempt = reconciled.attempts[number - 1]
    if attempt.task_id == task_id and NOTE in (attempt.note or ""):
        run_logger().warning("%s was reconciled by its callback: attempt %d is task %s.", key, number, task_id)
        emit("submitted", reconciled, task_id=task_id)
        if reconciled.task_id != task_id:
            run_logger().error("%s", _paid_twice(reconciled, number, task_id, resources.options))
    return reconciled


async def _record_alongside(found: Generation, number: int, task_id: str, resources: Resources) -> Generation:
    """Records a second task of an attempt: a proxy sent the paid call twice, and both were accepted."""
    key, ledger = found.key, resources.ledger
    if not await _bind(task_id, found, number, ledger):
        return found
    noted = partial(superseded_tasks.also_taken, attempt_number=number, task_id=task_id, now=resources.clock.now())
    changed = (await ledger.change(key, noted)).generation
    if changed.task_id == task_id:  # the paid call's own reply arrived meanwhile
        return changed
    run_logger().error(
        "%s was paid for twice in attempt %d, as %s and as %s. The paid call was sent once, so something on the way "
        "must have repeated it. The collector archives both videos.",
        key, number, found.attempts[number - 1].task_id, task_id,
    )  # fmt: skip
    return changed


async def _bind(task_id: str, found: Generation, number: int, ledger: Ledger) -> bool:
    """Binds a task to an attempt. False: it belongs to another key."""
    owner = await ledger.tasks.bind(task_id, found.key, number, named_by="callback", naming=found.next_naming)
    if owner.key != found.key:
        run_logger().warning("A callback for %s names task %s, which belongs to %s.", found.key, task_id, owner.key)
    return owner.key == found.key


def _paid_twice(reconciled: Generation, number: int, task_id: str, options: str) -> str:
    sentence = (
        f"{reconciled.key} was resubmitted before APIXO called back for attempt {number}: task {task_id} "
        "is paid as well. The collector archives its video alongside."
    )
    if reconciled.state is not State.FAILED:
        return sentence
    command = f"sora resolve {reconciled.key} --task-id {task_id}{options}"
    return f"{sentence} The later attempt failed. To get the video of this one, run: {command}"


def _unidentified(found: Generation, number: int, options: str) -> str:
    """What the user can do about a call that matches no known task."""
    sentence = f"APIXO called back for attempt {number} of {found.key}, so it accepted it, but named no known task."
    if found.state is State.UNCONFIRMED and number == found.attempt.number:
        return f"{sentence} {unconfirmed_error(found, options)}"
    attempt = found.attempts[number - 1]
    return (
        f"{sentence} The ledger has that attempt as {attempt.state}, and the generation as {found.state}. Look in your "
        f"APIXO account for a task of {utc(attempt.claimed_at)}. If the generation ends without a "
        f"task, run: sora resolve {found.key} --task-id TASK_ID{options}"
    )
