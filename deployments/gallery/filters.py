"""Selects the videos that a page shows, by words, state, days, model, tag, batch and page. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, date
from typing import Self
from urllib.parse import urlencode

from deployments.gallery.index import Item
from flows.record.generation import Generation, State

LONGEST_TEXT = 200
"""How many characters of a search are used."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a visitor selected. The fields are named as in the URL's query. An empty one selects everything."""

    q: str = ""
    state: str = ""
    model: str = ""
    tag: str = ""
    batch: str = ""
    since: str = ""
    until: str = ""
    page: int = 1

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """Parses the query of a URL. Invalid values are ignored."""
        values = {item.name: query.get(item.name, "").strip()[:LONGEST_TEXT] for item in fields(cls)}
        number = values.pop("page")
        days = {name: values[name] if _day(values[name]) else "" for name in ("since", "until")}
        state = values["state"] if values["state"] in {item.value for item in State} else ""
        page = int(number) if re.fullmatch("[1-9][0-9]{0,5}", number) else 1
        return cls(**{**values, **days, "state": state}, page=page)

    @property
    def narrows(self) -> bool:
        """Whether any filter is set."""
        return replace(self, page=1) != Filters()

    def query(self, **changed: str | int) -> str:
        """The query of a URL with the same filters, except for those in `changed`."""
        values = {item.name: getattr(self, item.name) for item in fields(self)} | {"page": 1} | changed
        return urlencode({name: value for name, value in values.items() if value and (name, value) != ("page", 1)})

    def takes(self, item: Item, words: list[str]) -> bool:
        """Whether a video is selected."""
        found = item.generation
        day = f"{found.created_at.astimezone(UTC):%Y-%m-%d}"
        return (
            (not self.state or found.state.value == self.state)
            and (not self.model or found.attempt.model == self.model)
            and (not self.tag or self.tag in found.request.tags)
            and (not self.batch or found.attempt.batch == self.batch)
            and (not self.since or day >= self.since)
            and (not self.until or day <= self.until)
            and all(word in item.text for word in words)
        )

    def of(self, items: Iterable[Item]) -> list[Generation]:
        """All selected videos, the newest first."""
        words = self.q.casefold().split()
        chosen = [item.generation for item in items if self.takes(item, words)]
        return sorted(chosen, key=lambda found: (found.created_at, found.key), reverse=True)


def menus(items: Iterable[Item]) -> dict[str, list[tuple[str, int]]]:
    """The states, models, tags and batches that can be selected, each with its number of videos."""
    found = [item.generation for item in items]
    states = Counter(generation.state.value for generation in found)
    return {
        "states": [(state.value, states[state.value]) for state in State if states[state.value]],
        "models": sorted(Counter(generation.attempt.model for generation in found).items()),
        "tags": sorted(Counter(tag for generation in found for tag in generation.request.tags).items()),
        "batches": sorted(Counter(item.attempt.batch for item in found if item.attempt.batch).items()),
    }


def _day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
