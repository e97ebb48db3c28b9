"""Runs, collectors, callbacks and persons on one key at once: a few plays, always the same ones.

`make attack` plays many more: `tests/attack/test_ledger_model.py`.
"""

from pathlib import Path

from blocks import VideoArchive
from tests.attack.model.director import direct, opened


def test_no_order_of_events_breaks_a_promise(archive: VideoArchive, tmp_path: Path) -> None:
    with opened(archive, tmp_path) as house:
        direct(house, plays=1, steps=25, chosen=True)
