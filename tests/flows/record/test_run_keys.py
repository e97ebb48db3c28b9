"""Keys for runs that were given none: readable, the same in every rerun, and never shared."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.utilities.names import generate_slug

from blocks.object_store import ObjectStore
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.record.run_keys import RunKeys, candidates, slug, typed_name

SLUGS = {
    "A red kite over dunes, slow dolly in": "a-red-kite-over-dunes-slow-dolly-in",
    "Caf\u00e9 M\u00fcller's   window": "cafe-mullers-window",
    "\u65e5\u672c": "video",
    "": "video",
    "x" * 100: "x" * 48,
    "one two three four five six seven eight nine ten eleven": "one-two-three-four-five-six-seven-eight-nine-ten",
    "...!": "video",
}


@pytest.mark.parametrize(("text", "expected"), SLUGS.items())
def test_slug_is_made_of_the_first_words_of_a_prompt(text: str, expected: str) -> None:
    assert slug(text) == expected


@given(st.text(max_size=300))
def test_any_text_gives_valid_keys(text: str) -> None:
    for candidate in candidates("run", slug(text)):
        assert check_key(candidate) == candidate


@pytest.mark.parametrize("generated", ["tau6-newton", "alpha-canis-majoris", "omega", "mu94711-hanghart-io", None, ""])
def test_name_filled_in_by_the_form_is_ignored(generated: str | None) -> None:
    assert typed_name(generated) is None


def test_name_generated_by_the_server_is_ignored() -> None:
    assert [name for name in (generate_slug(2) for _ in range(200)) if typed_name(name)] == []


@pytest.mark.parametrize("typed", ["spring-sale", "Spring Sale", "launch-03", "muesli", "a-red-kite"])
def test_name_typed_by_a_user_is_recognized(typed: str) -> None:
    assert typed_name(typed) == typed
    assert typed_name(f"generate {typed}", "generate") == typed


@pytest.fixture
def keys(ledger: Ledger) -> RunKeys:
    return ledger.run_keys


async def test_each_run_finds_its_key_again_and_no_two_runs_share_one(keys: RunKeys) -> None:
    runs = [f"run-{number}" for number in range(12)]
    first = await asyncio.gather(*(keys.key(run, "kite") for run in runs))
    assert len(set(first)) == 12
    assert first.count("kite") == 1
    # Whatever their names are by then, and in any order.
    assert await asyncio.gather(*(keys.key(run, "another") for run in reversed(runs))) == first[::-1]


async def test_processes_of_one_run_share_one_key(keys: RunKeys) -> None:
    assert len(set(await asyncio.gather(*(keys.key("run", f"name-{n}") for n in range(8))))) == 1


async def test_existing_key_is_not_reused_for_a_run(keys: RunKeys, store: ObjectStore) -> None:
    await store.put("ledger/kite.json", b"{}")
    await store.put("ledger/spring-01.json", b"{}")
    assert (await keys.key("one", "kite")).startswith("kite-")
    assert await keys.key("two", "spring") == "spring"
    assert (await keys.key("three", "spring", batch=True)).startswith("spring-")


async def test_run_of_an_earlier_version_keeps_its_id_as_key(keys: RunKeys, store: ObjectStore) -> None:
    await store.put("ledger/4b1d-01.json", b"{}")
    assert await keys.key("4b1d", "kite", batch=True) == "4b1d"
