"""The ledger's model as a state machine: Hypothesis chooses which actor takes the next steps, and what goes wrong."""

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from blocks import VideoArchive
from flows.record.generation import State
from flows.resources import PayingResources
from tests.attack.model.actors import without_servers
from tests.attack.model.provider import Answer
from tests.attack.model.scheduler import Delivery
from tests.attack.model.simulation import MACHINES, Fault, Harness, MakeBucket, Program, Simulation, plain_bucket
from tests.attack.model.strategies import (
    INITIAL_STATES,
    KEY,
    OTHER_KEY,
    actor_numbers,
    answers,
    clock_offsets,
    fail_codes,
    faults,
    keys,
    losses,
    stop_points,
)


class LedgerStateMachine(RuleBasedStateMachine):
    """One example: an initial state, then any sequence of the rules below."""

    def __init__(self, harness: Harness, initial_state: str) -> None:
        super().__init__()
        self.simulation = Simulation(harness)
        self.initial_state = initial_state
        self.grants = 0
        self.users_act = True

    @initialize(
        offsets=st.lists(clock_offsets, min_size=MACHINES, max_size=MACHINES),
        users_act=st.booleans(),
        refuse_duplicates=st.booleans(),
    )
    def set_initial_state(  # noqa: C901, PLR0912 - a list of initial states
        self, offsets: list[float], users_act: bool, refuse_duplicates: bool
    ) -> None:
        self.simulation.clock_offsets = offsets
        self.simulation.refuse_duplicates = refuse_duplicates and self.initial_state != "another key's task named"
        self.simulation.harness.tally[f"initial state: {self.initial_state}"] += 1
        self.start_run(KEY, "none")
        match self.initial_state:
            case "two runs about to claim":
                self._advance(0, "PUT ledger/")
                self.start_run(KEY, "none")
                self._advance(1, "PUT ledger/")
            case "two runs about to claim again":
                self._advance(0, "", answer=Answer.REJECTED)
                for number in range(2):
                    self.start_run(KEY, "none")
                    self._advance(number, "PUT ledger/")
            case "rejected and closed, about to be claimed":
                self._advance(0, "DELETE", answer=Answer.REJECTED)
                self.start_run(KEY, "none")
                self._advance(1, "PUT ledger/")
                self._advance(0, "")
            case "failed, reopened by a user's command that is killed":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self.finish_task(0, "OUT_OF_LUCK")
                self._advance(0, "")
                self._user_names("outside", "PUT ledger/")
                self._advance(0, "step", fault=Fault.KILLED)
            case "the reply to a claim is lost":
                self._advance(0, "PUT ledger/")
                self._advance(0, "sleep", delivery=Delivery.REPLY_LOST)
            case "two runs claim, a reply is lost":
                self._advance(0, "PUT ledger/")
                self.start_run(KEY, "none")
                self._advance(1, "PUT ledger/")
                self._advance(0, "connect")
                self._advance(1, "sleep", delivery=Delivery.REQUEST_LOST)
            case "paid":
                self._advance(0, "status", answer=Answer.ACCEPTED)
            case "paid, reply lost":
                self._advance(0, "", answer=Answer.ACCEPTED_REPLY_LOST)
            case "failed" | "failed, event being published":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self.finish_task(0, "OUT_OF_LUCK")
                self._advance(0, "" if self.initial_state == "failed" else "DELETE")
            case "failed, event being published, archived by a rerun":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self.finish_task(0, "OUT_OF_LUCK")
                self._advance(0, "DELETE")
                self.start_run(KEY, "new")
                self._advance(1, "post", answer=Answer.ACCEPTED)  # it polls the failed task before
                self._advance(1, "status")
                self.finish_task(0, "")
                self._advance(1, "PUT videos/")
                self._advance(1, "GET open/")
            case "archived, event not published" | "archived, event lost":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self.finish_task(0, "")
                self._advance(0, "event")
                if self.initial_state == "archived, event lost":
                    self._advance(0, "", delivery=Delivery.REQUEST_LOST)
            case "failed for good, run again":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self.finish_task(0, "CONTENT_VIOLATION")
                self._advance(0, "")
                self.start_run(KEY, "new")
                self._advance(0, "")
            case "another key's task named":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self.start_run(OTHER_KEY, "none")
                self._advance(1, "", answer=Answer.ACCEPTED_REPLY_LOST)
                self.receive_callback(OTHER_KEY, 1, "another")
                self._advance(1, "")
            case "a user named another task" | "a user is about to name the first task again":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self._user_names("outside")
                if self.initial_state == "a user is about to name the first task again":
                    self._user_names("own", "PUT ledger/")
            case "a user named another task before the reply":
                self._advance(0, "reply", answer=Answer.ACCEPTED)
                self._expire_lease()
                self._user_names("outside")
            case "task owner recorded, record not updated":
                self._advance(0, "PUT tasks/", answer=Answer.ACCEPTED)
                self._advance(0, "PUT ledger/", fault=Fault.KILLED)
            case "a user named another task, which failed, and the first one is the answer again":
                self._advance(0, "status", answer=Answer.ACCEPTED)
                self._user_names("outside")
                self.finish_task(1, "OUT_OF_LUCK")
                self.start_collector(KEY)
                self._advance(-1, "")
                self.user_allows_resubmission(KEY)
                self._advance(-1, "")
                self.start_run(KEY, "none")
                self._advance(-1, "PUT tasks/", answer=Answer.REPEATED)
                self._advance(-1, "PUT ledger/", fault=Fault.KILLED)
            case "frozen before connecting" | "frozen before sending":
                self._advance(0, "connect" if self.initial_state == "frozen before connecting" else "post")
                self._expire_lease()
                if self.initial_state == "frozen before connecting":
                    self._advance(0, "PUT ledger/")
            case "paid, frozen":
                self._advance(0, "reply", answer=Answer.ACCEPTED)
                self._expire_lease()
            case "paid, frozen, resubmission allowed" | "paid, frozen, resubmission rejected, late reply":
                self._advance(0, "reply", answer=Answer.ACCEPTED)
                self._expire_lease()
                self.user_allows_resubmission(KEY)
                self._advance(1, "")
                self.start_run(KEY, "none")
                if self.initial_state == "paid, frozen, resubmission rejected, late reply":
                    self._advance(1, "", answer=Answer.REJECTED)
                    self._advance(0, "status")
        record = self.simulation.records.get(KEY)
        state = record and record.state
        expected = INITIAL_STATES[self.initial_state]
        assert state == expected or self.simulation.violations, f"{self.initial_state}: {state}"
        self.users_act = users_act  # if users do nothing, no key may be paid for twice

    def _user_names(self, which: str, until: str = "") -> None:
        users_act, self.users_act = self.users_act, True
        self.user_names_task(KEY, which)
        self._advance(-1, until)
        self.users_act = users_act

    def _expire_lease(self) -> None:
        """The first run takes no step until a collector considers it dead."""
        self.start_collector(KEY)
        self._advance(1, "sleep")
        self.pass_time(1000.0)
        self._advance(1, "")

    @rule(key=keys, grant=st.sampled_from(["none", "none", "new", "last"]))
    def start_run(self, key: str, grant: str) -> None:
        granted = self.users_act and grant != "none"
        self.grants += granted and grant == "new"
        name = f"{key}-{self.grants}" if granted and self.grants else None
        self._start("run" if name is None else "rerun", key, lambda r: self._run(key, r, name))

    async def _run(self, key: str, resources: PayingResources, grant: str | None = None) -> None:
        refuse_duplicates = self.simulation.refuse_duplicates
        await self.simulation.pipeline.run(key, resources, grant, refuse_duplicates=refuse_duplicates)

    @rule(key=keys)
    def start_collector(self, key: str) -> None:
        pipeline = self.simulation.pipeline
        self._start("collector", key, lambda r: pipeline.collect(key, r), possible=key in self.simulation.records)

    @rule(key=keys, attempt=st.integers(1, 3), task=st.sampled_from(["own", "own", "another", "unknown", None]))
    def receive_callback(self, key: str, attempt: int, task: str | None) -> None:
        task_id = self._task(key, attempt, task)
        self._start(
            "callback",
            key,
            lambda r: self.simulation.pipeline.call_back(key, r, attempt=attempt, claimed_task_id=task_id),
            possible=key in self.simulation.records,
        )

    @rule(key=keys, which=st.sampled_from(["own", "own", "another", "outside", "named before", "unknown"]))
    def user_names_task(self, key: str, which: str) -> None:
        record = self.simulation.records.get(key)
        task_id = self._task(key, len(record.attempts) if record else 1, which) or "task_0"
        self._start(
            "resolve",
            key,
            lambda r: self.simulation.pipeline.resolve(key, r, task_id=task_id),
            possible=self._user_can_resolve(key),
        )

    @rule(key=keys)
    def user_allows_resubmission(self, key: str) -> None:
        pipeline = self.simulation.pipeline
        self._start("allow", key, lambda r: pipeline.allow(key, r), possible=self._user_can_resolve(key))

    @rule(number=actor_numbers, until=stop_points, answer=answers, fault=faults)
    def advance_actor(self, number: int, until: str, answer: Answer, fault: Fault | None) -> None:
        self._advance(number, until, answer=answer, fault=fault)

    @rule(number=actor_numbers, until=stop_points, answer=answers)
    def advance_actor_without_fault(self, number: int, until: str, answer: Answer) -> None:
        self._advance(number, until, answer=answer)

    @rule(number=actor_numbers, answer=answers)
    def advance_actor_to_its_end(self, number: int, answer: Answer) -> None:
        self._advance(number, "", answer=answer)

    @rule(number=actor_numbers, until=stop_points, loss=losses, answer=answers, fault=faults)
    def advance_actor_with_loss(
        self, number: int, until: str, loss: Delivery, answer: Answer, fault: Fault | None
    ) -> None:
        self._advance(number, until, delivery=loss, answer=answer, fault=fault)

    @rule(seconds=st.sampled_from([0.0, 0.0, 2.0, 50.0, 4000.0]))
    def start_store_outage(self, seconds: float) -> None:
        scheduler = self.simulation.scheduler
        scheduler.outage_until_seconds = scheduler.seconds + seconds

    @rule(seconds=st.sampled_from([1.0, 5.0, 61.0, 121.0, 1000.0]))
    def pass_time(self, seconds: float) -> None:
        self.simulation.scheduler.seconds += seconds

    @rule(number=actor_numbers, offset=clock_offsets)
    def set_clock(self, number: int, offset: float) -> None:
        self.simulation.clock_offsets[number] = offset
        actor = self.simulation.machines[number]
        if actor is not None:
            actor.set_clock(offset)

    @rule(number=actor_numbers, seconds=st.sampled_from([30.0, 300.0]))
    def suspend_machine(self, number: int, seconds: float) -> None:
        actor = self.simulation.machines[number]
        if actor is not None:
            actor.suspend_machine(seconds)

    @rule(number=st.integers(0, 7), fail_code=fail_codes)
    def finish_task(self, number: int, fail_code: str) -> None:
        processing = [task for task in self.simulation.provider.tasks.values() if task.state == "processing"]
        if not processing:
            return
        task = processing[number % len(processing)]
        task.state, task.fail_code = ("failed", fail_code) if fail_code else ("success", "")

    @rule(number=st.integers(0, 7), state=st.sampled_from(["processing", "success"]))
    def take_failure_back(self, number: int, state: Literal["processing", "success"]) -> None:
        failed = [task for task in self.simulation.provider.tasks.values() if task.state == "failed"]
        if failed:
            failed[number % len(failed)].state = state

    @invariant()
    def all_invariants_hold(self) -> None:
        self.simulation.harness.tally["checks"] += 1
        self.simulation.run(self.simulation.check())

    def teardown(self) -> None:
        try:
            if not self.simulation.violations:
                self.simulation.run(self.simulation.recover())
        finally:
            self.simulation.run(self.simulation.close())

    def _user_can_resolve(self, key: str) -> bool:
        resolvable = (State.CLAIMED, State.UNCONFIRMED, State.FAILED, State.SUBMITTED)
        record = self.simulation.records.get(key)
        return self.users_act and record is not None and record.state in resolvable

    def _start(self, name: str, key: str, program: Program, *, possible: bool = True) -> None:
        """Starts an actor on a free machine. If that is not possible, does something else, so no step is wasted."""
        if self.simulation.free_machine() is None:
            self._advance(0, "")
        elif possible:
            self.simulation.run(self.simulation.start(name, key, program))
        else:
            self._start_any(key)

    def _start_any(self, key: str) -> None:
        pipeline = self.simulation.pipeline
        if key in self.simulation.records and len(self.simulation.actors) % 2:
            self._start("collector", key, lambda r: pipeline.collect(key, r))
        else:
            self._start("run", key, lambda r: self._run(key, r))

    def _advance(
        self,
        number: int,
        until: str,
        *,
        delivery: Delivery = Delivery.OK,
        answer: Answer | None = None,
        fault: Fault | None = None,
    ) -> None:
        runnable = self.simulation.runnable()
        if not runnable:
            self._start_any(KEY)
            return
        actor = runnable[number % len(runnable)]
        actor.answer = answer or actor.answer
        self.simulation.run(self.simulation.advance(actor, until=until, delivery=delivery))
        if fault is not None and actor.runnable:
            self.simulation.harness.tally[f"{fault} before: {actor.next.partition(' ')[0]}"] += 1
            self.simulation.run(self.simulation.inject(fault, actor))

    def _task(self, key: str, attempt: int, which: str | None) -> str | None:
        """The id of the task that a callback or a user names, or None if there is no such task."""
        tasks = self.simulation.provider.tasks.values()
        match which:
            case "own":
                found = [task.task_id for task in tasks if (task.key, task.attempt) == (key, attempt)]
            case "another":  # of another attempt, or of another key
                found = [task.task_id for task in tasks if (task.key, task.attempt) != (key, attempt)]
            case "named before":  # made outside the pipeline, and named by a user before, for any key
                found = [task.task_id for task in tasks if task.attempt == 0]
            case "outside":  # made outside the pipeline just now
                return self.simulation.provider.accept("outside", 0).task_id
            case _:
                return which and "task_0"
        return found[-1] if found else None


@contextmanager
def open_harness(archive: VideoArchive, work_root: Path, make_bucket: MakeBucket = plain_bucket) -> Iterator[Harness]:
    """What all examples of a test share. Each example has its own bucket in this archive's store."""
    with asyncio.Runner() as runner, without_servers():
        harness = Harness(archive, work_root, runner, make_bucket)
        try:
            yield harness
        finally:
            harness.close()


def explore(harness: Harness, *, examples: int, steps: int, derandomize: bool) -> None:
    """Runs the state machine from each initial state, and prints what was covered.

    Args:
        harness: what all examples share.
        examples: how many examples to run for each initial state.
        steps: how many steps each of them has.
        derandomize: run the same examples each time instead of new ones.
    """
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([] if derandomize else [Phase.shrink])],
        print_blob=True,
    )
    try:
        for initial_state in INITIAL_STATES:
            run_state_machine_as_test(
                functools.partial(LedgerStateMachine, harness, initial_state),  # type: ignore[arg-type]
                settings=chosen,
            )
    finally:
        for name, times in sorted(harness.tally.items()):
            print(f"{times:8,} {name}")
