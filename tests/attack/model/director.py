"""The director of a play: Hypothesis chooses who does what next, and what becomes of it."""

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
from tests.attack.model.cast import set_up
from tests.attack.model.choices import KEY, OPENINGS, OTHER, aheads, answers, ends, fates, keys, thens, untils, whom
from tests.attack.model.provider import Answer
from tests.attack.model.stage import Fate
from tests.attack.model.theatre import MACHINES, Furnish, House, Play, Script, plainly


class LedgerMachine(RuleBasedStateMachine):
    """The director."""

    def __init__(self, house: House, opening: str) -> None:
        super().__init__()
        self.play = Play(house)
        self.opening = opening
        self.grants = 0
        self.persons = True

    @initialize(
        ahead=st.lists(aheads, min_size=MACHINES, max_size=MACHINES), persons=st.booleans(), refuses=st.booleans()
    )
    def the_curtain_rises(  # noqa: C901, PLR0912 - a list of beginnings
        self, ahead: list[float], persons: bool, refuses: bool
    ) -> None:
        self.play.ahead = ahead
        self.play.refuse_duplicates = refuses and self.opening != "another's task is named"
        self.play.house.tally[f"opening: {self.opening}"] += 1
        self.a_run_begins(KEY, "none")
        match self.opening:
            case "two about to claim":
                self._go_on(0, "PUT ledger/")
                self.a_run_begins(KEY, "none")
                self._go_on(1, "PUT ledger/")
            case "two about to claim again":
                self._go_on(0, "", answer=Answer.REFUSED)
                for number in range(2):
                    self.a_run_begins(KEY, "none")
                    self._go_on(number, "PUT ledger/")
            case "rejected and closed, about to be claimed":
                self._go_on(0, "DELETE", answer=Answer.REFUSED)
                self.a_run_begins(KEY, "none")
                self._go_on(1, "PUT ledger/")
                self._go_on(0, "")
            case "failed, taken up by a person who dies":
                self._go_on(0, "status", answer=Answer.TAKEN)
                self.a_task_ends(0, "OUT_OF_LUCK")
                self._go_on(0, "")
                self._a_person_names("stray", "PUT ledger/")
                self._go_on(0, "step", then="is killed")
            case "a claim whose reply is lost":
                self._go_on(0, "PUT ledger/")
                self._go_on(0, "sleep", fate=Fate.REPLY_LOST)
            case "two claim, a reply is lost":
                self._go_on(0, "PUT ledger/")
                self.a_run_begins(KEY, "none")
                self._go_on(1, "PUT ledger/")
                self._go_on(0, "connect")
                self._go_on(1, "sleep", fate=Fate.REQUEST_LOST)
            case "paid":
                self._go_on(0, "status", answer=Answer.TAKEN)
            case "paid, reply lost":
                self._go_on(0, "", answer=Answer.TAKEN_REPLY_LOST)
            case "failed" | "failed, being reported":
                self._go_on(0, "status", answer=Answer.TAKEN)
                self.a_task_ends(0, "OUT_OF_LUCK")
                self._go_on(0, "" if self.opening == "failed" else "DELETE")
            case "failed, being reported, made by a rerun":
                self._go_on(0, "status", answer=Answer.TAKEN)
                self.a_task_ends(0, "OUT_OF_LUCK")
                self._go_on(0, "DELETE")
                self.a_run_begins(KEY, "new")
                self._go_on(1, "status", answer=Answer.TAKEN)
                self.a_task_ends(0, "")
                self._go_on(1, "PUT videos/")
                self._go_on(1, "GET open/")
            case "archived, not reported" | "archived, the report is lost":
                self._go_on(0, "status", answer=Answer.TAKEN)
                self.a_task_ends(0, "")
                self._go_on(0, "event")
                if self.opening == "archived, the report is lost":
                    self._go_on(0, "", fate=Fate.REQUEST_LOST)
            case "failed for good, and sent back":
                self._go_on(0, "status", answer=Answer.TAKEN)
                self.a_task_ends(0, "CONTENT_VIOLATION")
                self._go_on(0, "")
                self.a_run_begins(KEY, "new")
                self._go_on(0, "")
            case "another's task is named":
                self._go_on(0, "status", answer=Answer.TAKEN)
                self.a_run_begins(OTHER, "none")
                self._go_on(1, "", answer=Answer.TAKEN_REPLY_LOST)
                self.a_callback_comes(OTHER, 1, "another")
                self._go_on(1, "")
            case "a person named another task" | "a person is about to go back to the first task":
                self._go_on(0, "status", answer=Answer.TAKEN)
                self._a_person_names("stray")
                if self.opening == "a person is about to go back to the first task":
                    self._a_person_names("its own", "PUT ledger/")
            case "a person named another task before the reply":
                self._go_on(0, "reply", answer=Answer.TAKEN)
                self._give_up()
                self._a_person_names("stray")
            case "a task noted, and not in the record":
                self._go_on(0, "PUT tasks/", answer=Answer.TAKEN)
                self._go_on(0, "PUT ledger/", then="is killed")
            case "frozen before connecting" | "frozen before sending":
                self._go_on(0, "connect" if self.opening == "frozen before connecting" else "post")
                self._give_up()
                if self.opening == "frozen before connecting":
                    self._go_on(0, "PUT ledger/")
            case "paid, frozen":
                self._go_on(0, "reply", answer=Answer.TAKEN)
                self._give_up()
            case "paid, frozen, allowed again" | "paid, frozen, refused, answered late":
                self._go_on(0, "reply", answer=Answer.TAKEN)
                self._give_up()
                self.a_person_allows_another_submission(KEY)
                self._go_on(1, "")
                self.a_run_begins(KEY, "none")
                if self.opening != "paid, frozen, allowed again":
                    self._go_on(1, "", answer=Answer.REFUSED)
                    self._go_on(0, "status")
        record = self.play.records.get(KEY)
        state = record and record.state
        assert state == OPENINGS[self.opening] or self.play.wrong, f"{self.opening}: {state}"
        self.persons = persons  # without any, not one key may be paid for twice

    def _a_person_names(self, which: str, until: str = "") -> None:
        persons, self.persons = self.persons, True
        self.a_person_names_a_task(KEY, which)
        self._go_on(-1, until)
        self.persons = persons

    def _give_up(self) -> None:
        """The first run stands still until a collector takes it for dead."""
        self.the_collector_begins(KEY)
        self._go_on(1, "sleep")
        self.time_passes(1000.0)
        self._go_on(1, "")

    @rule(key=keys, grant=st.sampled_from(["none", "none", "new", "last"]))
    def a_run_begins(self, key: str, grant: str) -> None:
        granted = self.persons and grant != "none"
        self.grants += granted and grant == "new"
        name = f"{key}-{self.grants}" if granted and self.grants else None
        self._begin("run" if name is None else "rerun", key, lambda r: self._run(key, r, name))

    async def _run(self, key: str, resources: PayingResources, grant: str | None = None) -> None:
        refuses = self.play.refuse_duplicates
        await self.play.cast.run(key, resources, grant, refuse_duplicates=refuses)

    @rule(key=keys)
    def the_collector_begins(self, key: str) -> None:
        self._begin("collector", key, lambda r: self.play.cast.collect(key, r), fits=key in self.play.records)

    @rule(key=keys, attempt=st.integers(1, 3), hint=st.sampled_from(["its own", "its own", "another", "unknown", None]))
    def a_callback_comes(self, key: str, attempt: int, hint: str | None) -> None:
        named = self._task(key, attempt, hint)
        self._begin(
            "callback",
            key,
            lambda r: self.play.cast.call_back(key, r, attempt=attempt, claimed_task_id=named),
            fits=key in self.play.records,
        )

    @rule(key=keys, which=st.sampled_from(["its own", "its own", "another", "stray", "dropped", "unknown"]))
    def a_person_names_a_task(self, key: str, which: str) -> None:
        record = self.play.records.get(key)
        task_id = self._task(key, len(record.attempts) if record else 1, which) or "task_0"
        self._begin(
            "resolve",
            key,
            lambda r: self.play.cast.resolve(key, r, task_id=task_id),
            fits=self._needs_a_person(key),
        )

    @rule(key=keys)
    def a_person_allows_another_submission(self, key: str) -> None:
        self._begin("allow", key, lambda r: self.play.cast.allow(key, r), fits=self._needs_a_person(key))

    @rule(number=whom, until=untils, answer=answers, then=thens)
    def somebody_goes_on(self, number: int, until: str, answer: Answer, then: str) -> None:
        self._go_on(number, until, answer=answer, then=then)

    @rule(number=whom, until=untils, answer=answers)
    def somebody_goes_on_alive(self, number: int, until: str, answer: Answer) -> None:
        self._go_on(number, until, answer=answer)

    @rule(number=whom, answer=answers)
    def somebody_goes_on_to_the_end(self, number: int, answer: Answer) -> None:
        self._go_on(number, "", answer=answer)

    @rule(number=whom, until=untils, fate=fates, answer=answers, then=thens)
    def somebody_goes_on_after_a_loss(self, number: int, until: str, fate: Fate, answer: Answer, then: str) -> None:
        self._go_on(number, until, fate=fate, answer=answer, then=then)

    @rule(seconds=st.sampled_from([0.0, 0.0, 2.0, 50.0, 4000.0]))
    def the_store_goes_away(self, seconds: float) -> None:
        self.play.stage.away_until_seconds = self.play.stage.seconds + seconds

    @rule(seconds=st.sampled_from([1.0, 5.0, 61.0, 121.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.play.stage.seconds += seconds

    @rule(number=whom, ahead=aheads)
    def a_clock_is_set(self, number: int, ahead: float) -> None:
        self.play.ahead[number] = ahead
        actor = self.play.machines[number]
        if actor is not None:
            actor.set_clock(ahead)

    @rule(number=whom, seconds=st.sampled_from([30.0, 300.0]))
    def a_machine_sleeps(self, number: int, seconds: float) -> None:
        actor = self.play.machines[number]
        if actor is not None:
            actor.machine_sleeps(seconds)

    @rule(number=st.integers(0, 7), fail_code=ends)
    def a_task_ends(self, number: int, fail_code: str) -> None:
        under_way = [task for task in self.play.provider.tasks.values() if task.state == "processing"]
        if not under_way:
            return
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

    def _needs_a_person(self, key: str) -> bool:
        helped = (State.CLAIMED, State.UNCONFIRMED, State.FAILED, State.SUBMITTED)
        record = self.play.records.get(key)
        return self.persons and record is not None and record.state in helped

    def _begin(self, name: str, key: str, script: Script, *, fits: bool = True) -> None:
        """Begins on a free machine. Where that does not fit, somebody else does something: no step is wasted."""
        if self.play.free() is None:
            self._go_on(0, "")
        elif fits:
            self.play.run(self.play.begin(name, key, script))
        else:
            self._somebody_comes(key)

    def _somebody_comes(self, key: str) -> None:
        cast = self.play.cast
        if key in self.play.records and len(self.play.actors) % 2:
            self._begin("collector", key, lambda r: cast.collect(key, r))
        else:
            self._begin("run", key, lambda r: self._run(key, r))

    def _go_on(
        self,
        number: int,
        until: str,
        *,
        fate: Fate = Fate.GOES_WELL,
        answer: Answer | None = None,
        then: str = "",
    ) -> None:
        acting = self.play.acting()
        if not acting:
            self._somebody_comes(KEY)
            return
        actor = acting[number % len(acting)]
        actor.answer = answer or actor.answer
        self.play.run(self.play.advance(actor, until=until, fate=fate))
        if not then or not actor.acting:
            return
        self.play.house.tally[f"{then} before: {actor.next.partition(' ')[0]}"] += 1
        if then == "is killed":
            actor.dead = True
        elif then == "loses its payment thread":
            self.play.run(self.play.lose_the_payment_thread(actor))
        else:
            self.play.run(self.play.end(actor))

    def _task(self, key: str, attempt: int, which: str | None) -> str | None:
        """A task that somebody names: the attempt's own, that of another attempt or key, one made outside, or none."""
        tasks = self.play.provider.tasks.values()
        match which:
            case "its own":
                fitting = [task.task_id for task in tasks if (task.key, task.attempt) == (key, attempt)]
            case "another":
                fitting = [task.task_id for task in tasks if (task.key, task.attempt) != (key, attempt)]
            case "dropped":  # one that a person has named before, for any key
                fitting = [task.task_id for task in tasks if task.attempt == 0]
            case "stray":
                return self.play.provider.take("outside", 0).task_id
            case _:
                return which and "task_0"
        return fitting[-1] if fitting else None


@contextmanager
def opened(archive: VideoArchive, spool: Path, furnish: Furnish = plainly) -> Iterator[House]:
    """The stage, built once for all plays of a test. Each play has a bucket of its own in this archive's store."""
    with asyncio.Runner() as runner, set_up():
        house = House(archive, spool, runner, furnish)
        try:
            yield house
        finally:
            house.close()


def direct(house: House, *, plays: int, steps: int, chosen: bool) -> None:
    """Plays, and says what was played.

    Args:
        house: where.
        plays, steps: how many plays for each opening, of how many steps each.
        chosen: always the same plays, rather than new ones each time.
    """
    chosen_or_new = settings(
        max_examples=plays,
        stateful_step_count=steps,
        derandomize=chosen,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([] if chosen else [Phase.shrink])],
        print_blob=True,
    )
    try:
        for opening in OPENINGS:
            run_state_machine_as_test(
                functools.partial(LedgerMachine, house, opening),  # type: ignore[arg-type]
                settings=chosen_or_new,
            )
    finally:
        for name, times in sorted(house.tally.items()):
            print(f"{times:8,} {name}")
