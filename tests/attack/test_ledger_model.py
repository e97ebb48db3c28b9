"""Many runs, collectors, callbacks and persons on one key at once, in any order, against a real MinIO.

Hypothesis directs: who goes on, what becomes of that request, what the provider answers, who is killed, how the clocks
go. After each step the promises are checked on what MinIO holds and on what the provider has charged.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deployments.object_store import ObjectStoreServer
from flows.generation import State
from tests.attack.model.cast import set_up
from tests.attack.model.provider import Answer
from tests.attack.model.stage import Fate
from tests.attack.model.theatre import MACHINES, House, Play
from tests.support import make_archive

KEY: Final = "kite"
OTHER: Final = "sail"

keys = st.sampled_from([KEY, KEY, KEY, OTHER])
whom = st.integers(0, MACHINES - 1)
aheads = st.sampled_from([0.0, 0.0, 90.0, -90.0, 600.0, -600.0])
untils = st.sampled_from(["step", "step", "PUT ledger/", "DELETE", "post", "reply", "sleep", ""])
fates = st.sampled_from([Fate.GOES_WELL, Fate.GOES_WELL, Fate.GOES_WELL, Fate.REPLY_LOST, Fate.REQUEST_LOST])
answers = st.sampled_from([Answer.TAKEN, Answer.TAKEN, *Answer])
ends = st.sampled_from(["", "", "OUT_OF_LUCK", "OUT_OF_LUCK", "CONTENT_VIOLATION"])


class LedgerMachine(RuleBasedStateMachine):
    """The director."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.play = Play(house)
        self.grants = 0

    @initialize(ahead=st.lists(aheads, min_size=MACHINES, max_size=MACHINES))
    def clocks(self, ahead: list[float]) -> None:
        self.play.ahead = ahead
        self.a_run_begins(KEY, "none")

    def a_machine_is_free(self) -> bool:
        return self.play.free() is not None

    def somebody_acts(self) -> bool:
        return bool(self.play.acting())

    def something_is_known(self) -> bool:
        return bool(self.play.records)

    def a_person_is_needed(self) -> bool:
        helped = (State.CLAIMED, State.UNCONFIRMED, State.FAILED, State.SUBMITTED)
        return any(record.state in helped for record in self.play.records.values())

    def a_task_is_under_way(self) -> bool:
        return any(task.state == "processing" for task in self.play.provider.tasks.values())

    @precondition(a_machine_is_free)
    @rule(key=keys, grant=st.sampled_from(["none", "none", "new", "last"]))
    def a_run_begins(self, key: str, grant: str) -> None:
        self.grants += grant == "new"
        name = f"{key}-{self.grants}" if grant != "none" and self.grants else None
        self._begin("run" if name is None else "rerun", key, lambda r: self.play.cast.run(key, r, name))

    @precondition(a_machine_is_free)
    @precondition(something_is_known)
    @rule(key=keys)
    def the_collector_begins(self, key: str) -> None:
        self._begin("collector", key, lambda r: self.play.cast.collect(key, r))

    @precondition(a_machine_is_free)
    @precondition(something_is_known)
    @rule(key=keys, attempt=st.integers(1, 3), hint=st.sampled_from(["its own", "its own", "another", "unknown", None]))
    def a_callback_comes(self, key: str, attempt: int, hint: str | None) -> None:
        named = self._task(key, attempt, hint)
        self._begin("callback", key, lambda r: self.play.cast.call_back(key, r, attempt=attempt, hint=named))

    @precondition(a_machine_is_free)
    @precondition(a_person_is_needed)
    @rule(key=keys, which=st.sampled_from(["its own", "its own", "another", "stray", "unknown"]))
    def a_person_names_a_task(self, key: str, which: str) -> None:
        record = self.play.records.get(key)
        task_id = self._task(key, len(record.attempts) if record else 1, which) or "task_0"
        self._begin("resolve", key, lambda r: self.play.cast.resolve(key, r, task_id=task_id))

    @precondition(a_machine_is_free)
    @precondition(a_person_is_needed)
    @rule(key=keys)
    def a_person_allows_another_submission(self, key: str) -> None:
        self._begin("allow", key, lambda r: self.play.cast.allow(key, r))

    @precondition(somebody_acts)
    @rule(number=whom, until=untils, fate=fates, answer=answers)
    def somebody_goes_on(self, number: int, until: str, fate: Fate, answer: Answer) -> None:
        self._go_on(number, until, fate, answer)

    @precondition(somebody_acts)
    @rule(number=whom, until=untils, answer=answers)
    def somebody_goes_on_well(self, number: int, until: str, answer: Answer) -> None:
        self._go_on(number, until, Fate.GOES_WELL, answer)

    @precondition(somebody_acts)
    @rule(number=whom)
    def somebody_is_killed(self, number: int) -> None:
        actor = self._one(number)
        self.play.house.tally[f"killed before: {actor.next.partition(' ')[0]}"] += 1
        actor.dead = True

    @precondition(somebody_acts)
    @rule(number=whom)
    def a_run_is_ended(self, number: int) -> None:
        self.play.run(self.play.end(self._one(number)))

    @rule(seconds=st.sampled_from([1.0, 5.0, 61.0, 121.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.play.stage.seconds += seconds

    @precondition(somebody_acts)
    @rule(number=whom, ahead=aheads)
    def a_clock_is_set(self, number: int, ahead: float) -> None:
        self._one(number).ahead_seconds = ahead

    @precondition(a_task_is_under_way)
    @rule(number=st.integers(0, 7), fail_code=ends)
    def a_task_ends(self, number: int, fail_code: str) -> None:
        under_way = [task for task in self.play.provider.tasks.values() if task.state == "processing"]
        task = under_way[number % len(under_way)]
        task.state, task.fail_code = ("failed", fail_code) if fail_code else ("success", "")

    @invariant()
    def the_promises_are_kept(self) -> None:
        self.play.house.tally["checks"] += 1
        self.play.run(self.play.check())

    def teardown(self) -> None:
        try:
            if not self.play.wrong:
                self.play.run(self.play.bring_all_home())
        finally:
            self.play.run(self.play.close())

    def _begin(self, name: str, key: str, script: Any) -> None:
        self.play.run(self.play.begin(name, key, script))

    def _one(self, number: int) -> Any:
        acting = self.play.acting()
        return acting[number % len(acting)]

    def _go_on(self, number: int, until: str, fate: Fate, answer: Answer) -> None:
        actor = self._one(number)
        actor.answer = answer
        self.play.run(self.play.advance(actor, until=until, fate=fate))

    def _task(self, key: str, attempt: int, which: str | None) -> str | None:
        """A task that somebody names: the attempt's own, that of another attempt or key, one made outside, or none."""
        tasks = self.play.provider.tasks.values()
        match which:
            case "its own":
                fitting = [task.task_id for task in tasks if (task.key, task.attempt) == (key, attempt)]
            case "another":
                fitting = [task.task_id for task in tasks if (task.key, task.attempt) != (key, attempt)]
            case "stray":
                return self.play.provider.take("outside", 0).task_id
            case _:
                return which and "task_0"
        return fitting[-1] if fitting else None


@pytest.fixture
def house(minio: ObjectStoreServer, tmp_path: Path) -> Iterator[House]:
    """The stage is built once for all plays of a test."""
    with asyncio.Runner() as runner, set_up():
        made = House(make_archive(minio), tmp_path, runner)
        yield made
        made.close()


def direct(house: House, *, plays: int, steps: int) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(house),  # type: ignore[arg-type]
        settings=settings(
            max_examples=plays,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    for name, times in sorted(house.tally.items()):
        print(f"{times:8,} {name}")


def test_no_order_of_events_breaks_a_promise(house: House) -> None:
    direct(house, plays=int(os.environ.get("PLAYS", "60")), steps=int(os.environ.get("STEPS", "30")))
