"""The strategies from which Hypothesis draws, and the initial states."""

from typing import Final

from hypothesis import strategies as st

from flows.record.generation import State
from tests.attack.model.provider import Answer
from tests.attack.model.scheduler import Delivery
from tests.attack.model.simulation import MACHINES, Fault

KEY: Final = "kite"
OTHER_KEY: Final = "sail"

keys = st.sampled_from([KEY, KEY, KEY, OTHER_KEY])
actor_numbers = st.integers(0, MACHINES - 1)
clock_offsets = st.sampled_from([0.0, 0.0, 90.0, -90.0, 600.0, -600.0])
requests = ["PUT ledger/", "PUT tasks/", "PUT requests/", "PUT videos/", "GET tasks/", "GET open/", "DELETE", "LIST"]
stop_points = st.sampled_from(
    ["step", "step", "step", *requests, "connect", "post", "reply", "status", "event", "sleep", ""]
)
losses = st.sampled_from([Delivery.REPLY_LOST, Delivery.REQUEST_LOST])
faults = st.sampled_from([None, None, *Fault])
answers = st.sampled_from([Answer.ACCEPTED, Answer.ACCEPTED, *Answer])
fail_codes = st.sampled_from(["", "", "OUT_OF_LUCK", "OUT_OF_LUCK", "CONTENT_VIOLATION"])

INITIAL_STATES: Final = {
    "no record": None,
    "two runs about to claim": None,
    "two runs about to claim again": State.REJECTED,
    "rejected and closed, about to be claimed": State.REJECTED,
    "failed, reopened by a user's command that is killed": State.SUBMITTED,
    "the reply to a claim is lost": State.CLAIMED,
    "two runs claim, a reply is lost": State.CLAIMED,
    "paid": State.SUBMITTED,
    "paid, reply lost": State.UNCONFIRMED,
    "failed": State.FAILED,
    "failed, event being published": State.FAILED,
    "failed, event being published, archived by a rerun": State.ARCHIVED,
    "archived, event not published": State.ARCHIVED,
    "archived, event lost": State.ARCHIVED,
    "failed for good, run again": State.FAILED,
    "another key's task named": State.SUBMITTED,
    "a user named another task": State.SUBMITTED,
    "a user named another task before the reply": State.SUBMITTED,
    "a user is about to name the first task again": State.SUBMITTED,
    "task owner recorded, record not updated": State.CLAIMED,
    "a user named another task, which failed, and the first one is the answer again": State.CLAIMED,
    "frozen before connecting": State.UNCONFIRMED,
    "frozen before sending": State.UNCONFIRMED,
    "paid, frozen": State.UNCONFIRMED,
    "paid, frozen, resubmission allowed": State.REJECTED,
    "paid, frozen, resubmission rejected, late reply": State.SUBMITTED,
}
"""Each initial state, with the state of the record in it. Random steps alone would seldom reach the later ones, so each
gets the same number of examples."""
