"""Many runs, collectors, callbacks and users' commands work on the same keys, in any order, against a real MinIO.

Hypothesis chooses which actor takes the next step, what becomes of its request, how the provider answers, which actor
is killed, and how the clocks change. After each step, the invariants are checked on the content of MinIO and on what
the provider has charged. Every test run includes a few examples, always the same ones.
"""

import os
from pathlib import Path

import pytest

from blocks import VideoArchive
from tests.attack.model.state_machine import explore, open_harness

EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
"""For each initial state."""
STEPS = int(os.environ.get("STEPS", "50"))


@pytest.mark.parametrize(
    ("examples", "steps", "derandomize"),
    [
        pytest.param(1, 25, True, marks=pytest.mark.sample, id="sample"),
        pytest.param(EXAMPLES, STEPS, False, marks=pytest.mark.timeout(7200), id="many"),
    ],
)
def test_no_schedule_violates_an_invariant(
    examples: int, steps: int, derandomize: bool, archive: VideoArchive, tmp_path: Path
) -> None:
    with open_harness(archive, tmp_path) as harness:
        explore(harness, examples=examples, steps=steps, derandomize=derandomize)
