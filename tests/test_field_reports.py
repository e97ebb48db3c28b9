"""Every row of docs/field-reports.md has a source and names an existing test."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
ROWS: Final = [
    line for line in (ROOT / "docs" / "field-reports.md").read_text().splitlines() if re.match(r"\| (?!source|-)", line)
]
COLUMNS: Final = 5


def test_every_row_names_source_and_existing_test() -> None:
    existing = {
        (path.stem, name)
        for path in (ROOT / "tests").glob("**/test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for row in ROWS:
        cells = re.split(r" \| ", row.removeprefix("| ").removesuffix(" |"))
        assert len(cells) == COLUMNS, row
        assert "](http" in cells[0], row
        named = re.fullmatch(r"`(\w+)::(\w+)`", cells[-1])
        assert named is not None, row
        assert named.groups() in existing, row
