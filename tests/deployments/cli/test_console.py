"""External text that the command line prints: no control character reaches the terminal, and markup stays text."""

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
CONTROL_TEXTS = {
    "clears the screen": "\x1b[2J\x1b[1;1H",
    "sets the title": "\x1b]0;owned\x07",
    "writes the clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "creates a link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "8-bit control character": "\x9b2J",
    "deletes": "\x08\x08\x08\x7f",
    "overwrites the line": "all is well\r",
    "reverses the direction": "\u202efdp.exe\u202c \u2066\u2069",
    "rings the bell": "\a",
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


def control_characters(text: str) -> str:
    """The control characters in a text. Rich itself prints none where it draws no colors."""
    return "".join(letter for letter in text if not letter.isprintable() and letter != "\n")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The output of all consoles, on a terminal without colors."""
    file = io.StringIO()
    for name, console_ in (("out", console.out), ("err", console.err)):
        terminal = type(console_)(file=file, width=400, highlight=False, emoji=False, no_color=True)
        for module in (console, failures, records):
            monkeypatch.setattr(module, name, terminal, raising=False)
    return file


def failed_generation(text: str) -> Generation:
    """A record with a text in every field that a user or the provider can fill."""
    owner = Owner(host="build-7", pid=1)
    generation = transitions.claim(
        None, key="kite", request=VideoRequest(prompt=f"A kite {text}"), owner=owner, lease_seconds=1, now=NOW
    )
    generation = transitions.submitted(generation, attempt_number=1, task_id="[/task]", now=NOW, note=f"noted {text}")
    status = Failed(task_id="[/task]", state="failed", fail_code=f"C {text}", fail_message=f"because {text}")
    return transitions.failed(generation, status, now=NOW).model_copy(update={"warnings": (f"warned {text}",)})


@pytest.mark.parametrize("text", CONTROL_TEXTS.values(), ids=CONTROL_TEXTS)
def test_external_text_prints_no_control_characters(text: str, printed: io.StringIO) -> None:
    records.print_record(failed_generation(text), "")
    print_table(["prompt"], [[text]])
    fail(TransitionError(f"APIXO says {text}"))
    assert control_characters(printed.getvalue()) == ""
    for word in ("A kite", "because", "warned", "APIXO says"):
        assert word in printed.getvalue()


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_external_text_is_printed_literally(text: str, printed: io.StringIO) -> None:
    records.print_record(failed_generation(text), "")
    fail(TransitionError(f"APIXO says {text}"))
    for words in (f"A kite {text}", f"because {text}", f"warned {text}", f"APIXO says {text}", "[/task]"):
        assert words in printed.getvalue()


def test_external_text_cannot_forge_output_lines(printed: io.StringIO) -> None:
    text = "x\n  next       sora resolve kite --resubmit\u2028  next\x85  next"
    records.print_record(failed_generation(text), "")
    (line,) = [line for line in printed.getvalue().splitlines() if line.lstrip().startswith("next")]
    assert line.startswith("  next       To pay for another try: `sora resolve kite --resubmit`, or a Custom run")
    assert one_line("a\r\n\tb \u2029 [c]") == "a b \\[c]"


@pytest.mark.parametrize("terminal", [True, False])
def test_live_view_shows_provider_text_without_control_characters(terminal: bool) -> None:
    file = io.StringIO()
    shown = display.StepDisplay(
        type(console.err)(file=file, width=200, emoji=False, no_color=True, force_terminal=terminal)
    )
    for words in (*CONTROL_TEXTS.values(), *MARKUP):
        for done in (False, True):
            shown(Progress("kite", "wait", f"state {words}", done=done))
            plain = Console(file=file, width=200, no_color=True, force_terminal=False)
            plain.print(shown._render())
    assert control_characters(file.getvalue()) == ""


def test_both_consoles_replace_control_characters_and_keep_emoji_codes() -> None:
    for each in (console.out, console.err):
        assert each.render_str("\x1b[31m:fire:").plain == "\N{REPLACEMENT CHARACTER}[31m:fire:"


def test_ctrl_c_inside_pydantic_serializer_is_recognized() -> None:
    """Prefect builds its settings with pydantic while it is being imported, so Ctrl-C can be raised in there."""

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
module.app, module.COMMANDS = app, {}
sys.modules[module.__name__] = module
from deployments.cli import main
main()
"""


def test_ctrl_c_inside_a_destructor_ends_the_command() -> None:
    command = [sys.executable, "-c", CTRL_C_IN_A_DESTRUCTOR]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "Interrupted.\n")
