"""docs/reference.md is what the code says."""

from tests.reference import PAGE, page


def test_the_reference_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), "run: make reference"
