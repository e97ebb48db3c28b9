"""docs/reference.md matches the code."""

from tests.reference import PAGE, page


def test_reference_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: make reference"
