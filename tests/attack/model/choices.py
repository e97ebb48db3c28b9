"""What Hypothesis may choose in a play."""

from typing import Final

from hypothesis import strategies as st

from flows.record.generation import State
from tests.attack.model.provider import Answer
from tests.attack.model.stage import Fate
from tests.attack.model.theatre import MACHINES

KEY: Final = "kite"
OTHER: Final = "sail"

keys = st.sampled_from([KEY, KEY, KEY, OTHER])
whom = st.integers(0, MACHINES - 1)
aheads = st.sampled_from([0.0, 0.0, 90.0, -90.0, 600.0, -600.0])
requests = ["PUT ledger/", "PUT tasks/", "PUT requests/", "PUT videos/", "GET tasks/", "GET open/", "DELETE", "LIST"]
untils = st.sampled_from(["step", "step", "step", *requests, "connect", "post", "reply", "event", "sleep", ""])
fates = st.sampled_from([Fate.REPLY_LOST, Fate.REQUEST_LOST])
thens = st.sampled_from(["", "", "is killed", "is ended", "loses its payment thread"])
answers = st.sampled_from([Answer.TAKEN, Answer.TAKEN, *Answer])
ends = st.sampled_from(["", "", "OUT_OF_LUCK", "OUT_OF_LUCK", "CONTENT_VIOLATION"])

OPENINGS: Final = {
    "nothing": None,
    "two about to claim": None,
    "two about to claim again": State.REJECTED,
    "rejected and closed, about to be claimed": State.REJECTED,
    "failed, taken up by a person who dies": State.SUBMITTED,
    "a claim whose reply is lost": State.CLAIMED,
    "two claim, a reply is lost": State.CLAIMED,
    "paid": State.SUBMITTED,
    "paid, reply lost": State.UNCONFIRMED,
    "failed": State.FAILED,
    "failed, being reported": State.FAILED,
    "failed, being reported, made by a rerun": State.ARCHIVED,
    "archived, not reported": State.ARCHIVED,
    "archived, the report is lost": State.ARCHIVED,
    "failed for good, and sent back": State.FAILED,
    "another's task is named": State.SUBMITTED,
    "a person named another task": State.SUBMITTED,
    "a person named another task before the reply": State.SUBMITTED,
    "a person is about to go back to the first task": State.SUBMITTED,
    "a task noted, and not in the record": State.CLAIMED,
    "frozen before connecting": State.UNCONFIRMED,
    "frozen before sending": State.UNCONFIRMED,
    "paid, frozen": State.UNCONFIRMED,
    "paid, frozen, allowed again": State.REJECTED,
    "paid, frozen, refused, answered late": State.SUBMITTED,
}
"""How far a play is when it begins, and the record then. Chance alone would seldom come to the later ones, so each is
played as often as the others."""
