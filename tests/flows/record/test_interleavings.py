"""Runs, collectors, callbacks and users' commands work on the same keys: a few examples, the same ones each time.

`make attack` runs many more: `tests/attack/test_ledger_model.py`.
"""

from pathlib import Path

from blocks import VideoArchive
from tests.attack.model.state_machine import explore, open_harness


def test_no_schedule_violates_an_invariant(archive: VideoArchive, tmp_path: Path) -> None:
    with open_harness(archive, tmp_path) as harness:
        explore(harness, examples=1, steps=25, derandomize=True)
