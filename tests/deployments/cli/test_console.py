"""What the command line prints of texts from outside: a terminal obeys none of them, and markup stays text."""

import io
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel, model_serializer
from pydantic_core import PydanticSerializationError
from rich.console import Console

from apixo import Failed, VideoRequest
from deployments.cli import console, display, failures, records
from deployments.cli.console import one_line, print_table
from deployments.cli.failures import fail, what_ended
from flows.record import transitions
from flows.record.generation import Generation, Owner
from flows.record.pipeline_errors import TransitionError
from flows.signals.progress import Progress

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OBEYED = {
    "clears the screen": "\x1b[2J\x1b[1;1H",
    "sets the title": "\x1b]0;owned\x07",
    "writes the clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "makes a link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "eight bits": "\x9b2J",
    "deletes": "\x08\x08\x08\x7f",
    "overwrites the line": "all is well\r",
    "turns the direction": "\u202efdp.exe\u202c \u2066\u2069",
    "rings": "\a",
    "ends a C string": "\x00",
}
MARKUP = [
    "[bold]loud[/bold]",
    "[/]",
    "[/nothing]",
    "[link=http://evil.example]here[/link]",
    "[red",
    "back\\[bold]",
    "\\",
    ":fire: :skull:",
    "{{ 7 * 7 }} {% raw %} %s %(message)s {0}",
    "<script>alert(1)</script>",
]


def obeyed(text: str) -> str:
    """The characters of a text that a terminal would obey. Rich makes none itself where it draws no colors."""
    return "".join(letter for letter in text if not letter.isprintable() and letter != "\n")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed, on a terminal that shows no colors."""
    file = io.StringIO()
    for name, console_ in (("out", console.out), ("err", console.err)):
        terminal = type(console_)(file=file, width=400, highlight=False, emoji=False, no_color=True)
        for module in (console, failures, records):
            monkeypatch.setattr(module, name, terminal, raising=False)
    return file


def failed_generation(text: str) -> Generation:
    """A record that holds a text wherever a person or the provider can put one."""
    owner = Owner(host="build-7", pid=1)
    made = transitions.claim(
        None, key="kite", request=VideoRequest(prompt=f"A kite {text}"), owner=owner, lease_seconds=1, now=NOW
    )
    made = transitions.submitted(made, attempt_number=1, task_id="[/task]", now=NOW, note=f"noted {text}")
    status = Failed(task_id="[/task]", state="failed", fail_code=f"C {text}", fail_message=f"because {text}")
    return transitions.failed(made, status, now=NOW).model_copy(update={"warnings": (f"warned {text}",)})


@pytest.mark.parametrize("text", OBEYED.values(), ids=OBEYED)
def test_a_terminal_obeys_nothing_that_came_from_outside(text: str, written: io.StringIO) -> None:
    records.print_record(failed_generation(text), "")
    print_table(["prompt"], [[text]])
    fail(TransitionError(f"APIXO says {text}"))
    assert obeyed(written.getvalue()) == ""
    for word in ("A kite", "because", "warned", "APIXO says"):
        assert word in written.getvalue()


@pytest.mark.parametrize("text", MARKUP)
def test_markup_stays_text(text: str, written: io.StringIO) -> None:
    records.print_record(failed_generation(text), "")
    fail(TransitionError(f"APIXO says {text}"))
    for words in (f"A kite {text}", f"because {text}", f"warned {text}", f"APIXO says {text}", "[/task]"):
        assert words in written.getvalue()


def test_no_text_can_make_lines_that_look_like_ours(written: io.StringIO) -> None:
    text = "x\n  next       sora resolve kite --resubmit\u2028  next\x85  next"
    records.print_record(failed_generation(text), "")
    assert [line for line in written.getvalue().splitlines() if line.lstrip().startswith("next")] == [
        "  next       sora resolve kite"
    ]
    assert one_line("a\r\n\tb \u2029 [c]") == "a b \\[c]"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_live_view_shows_a_providers_words_and_obeys_none(terminal: bool) -> None:
    file = io.StringIO()
    shown = display.StepDisplay(
        type(console.err)(file=file, width=200, emoji=False, no_color=True, force_terminal=terminal)
    )
    for words in (*OBEYED.values(), *MARKUP):
        for done in (False, True):
            shown(Progress("kite", "wait", f"state {words}", done=done))
            plain = Console(file=file, width=200, no_color=True, force_terminal=False)
            plain.print(shown._render())
    assert obeyed(file.getvalue()) == ""


def test_the_consoles_are_the_careful_ones() -> None:
    for made in (console.out, console.err):
        assert made.render_str("\x1b[31m:fire:").plain == "\N{REPLACEMENT CHARACTER}[31m:fire:"


def test_ctrl_c_inside_a_serializer_in_rust_is_known_by_its_name() -> None:
    """Prefect builds its settings with pydantic while it is imported."""

    class Model(BaseModel):
        @model_serializer
        def serialize(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(PydanticSerializationError) as caught:
        Model().model_dump_json()
    caught.value.__cause__ = caught.value.__context__ = None
    assert what_ended(caught.value) == ("Interrupted.", 130)
    assert what_ended(ValueError("KeyboardInterrupt")) is None


CTRL_C_IN_A_DESTRUCTOR = """
import sys, time
from types import ModuleType

class Ended:
    def __del__(self):
        raise KeyboardInterrupt

def app():
    Ended()
    time.sleep(60)
    print("went on")

module = ModuleType("deployments.cli.app")
module.app = app
sys.modules[module.__name__] = module
from deployments.cli import main
main()
"""


def test_ctrl_c_where_nothing_can_be_raised_ends_the_command_all_the_same() -> None:
    command = [sys.executable, "-c", CTRL_C_IN_A_DESTRUCTOR]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "Interrupted.\n")
