"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """So many of them: `1 row`, `2,000 rows`. Pure. For nouns whose plural takes an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
