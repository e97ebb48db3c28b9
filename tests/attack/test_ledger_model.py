"""Many runs, collectors, callbacks and persons on one key at once, in any order, against a real MinIO.

Hypothesis directs: who goes on, what becomes of that request, what the provider answers, who is killed, how the clocks
go. After each step the promises are checked on what MinIO holds and on what the provider has charged.
A few plays of it belong to every run of the tests: `tests/flows/record/test_interleavings.py`.
"""

import os
from pathlib import Path

import pytest

from blocks import VideoArchive
from tests.attack.model.director import direct, opened

PLAYS = int(os.environ.get("PLAYS", "60"))
STEPS = int(os.environ.get("STEPS", "50"))


@pytest.mark.timeout(7200)
def test_no_order_of_events_breaks_a_promise(archive: VideoArchive, tmp_path: Path) -> None:
    with opened(archive, tmp_path) as house:
        direct(house, plays=PLAYS, steps=STEPS, chosen=False)
