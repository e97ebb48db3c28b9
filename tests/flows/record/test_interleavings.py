"""Runs, collectors, callbacks and user commands interleaved on the same keys: a few examples, always the same ones.

`make attack` runs many more, in `tests/attack/test_ledger_model.py`.
"""

from pathlib import Path

from blocks import VideoArchive
from tests.attack.model.state_machine import explore, open_harness


def test_no_schedule_violates_an_invariant(archive: VideoArchive, tmp_path: Path) -> None:
    with open_harness(archive, tmp_path) as harness:
        explore(harness, examples=1, steps=25, derandomize=True)
