"""What commands have in common: what they print, and which numbers and keys they take."""

import io

import pytest
from rich.table import Table
from typer.testing import CliRunner

from aimass.cli import app
from aimass.client import PredictionError
from aimass.console import CleanConsole, say


@pytest.mark.parametrize("shown", ["line", "table"])
def test_no_text_tells_the_terminal_what_to_do(shown: str) -> None:
    console = CleanConsole(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    hostile = "c\x1b]0;owned\x07\x1b[2Ja\x9b31mt\u202e\u200b\x00\r\u2028"
    if shown == "line":
        say(console, hostile)
    else:
        table = Table("said", box=None)
        table.add_row(f"[red]{hostile}[/]")
        console.print(table)

    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "c]0;owned" in printed
    assert not set(printed) & set("\x07\x9b\u202e\u200b\x00\r\u2028")
    assert "\x1b]" not in printed
    assert "\x1b[2J" not in printed
    assert ("\x1b[31m" in printed) == (shown == "table")  # colours that a command chose itself


@pytest.mark.parametrize(
    "command",
    [
        "review decide 9223372036854775808 --reject",
        "loop delete sample 9223372036854775808 --yes",
        "loop propose pets 9223372036854775808",
        "loop promote pets --version 9223372036854775808",
        "loop events pets --after 9223372036854775808",
        "feedback export pets --after 9223372036854775808",
        "traffic pets --canary 9223372036854775808",
        "promote pets --version 9223372036854775808",
    ],
)
def test_a_number_that_nothing_has_is_refused_before_anybody_is_asked(command: str) -> None:
    result = CliRunner().invoke(app, command.split(), env={"COLUMNS": "300"})

    assert result.exit_code == 2
    assert "less than or equal to 9223372036854775807" in " ".join(result.output.split())


@pytest.mark.parametrize("key", ["am_\u00e9", "am_1\n"])
@pytest.mark.parametrize("command", ["review pets", "feedback send abc --right"])
def test_a_key_that_cannot_be_one_is_named_and_not_told(key: str, command: str) -> None:
    result = CliRunner().invoke(app, command.split(), env={"AIMASS_KEY": key})

    assert isinstance(result.exception, PredictionError)
    assert "correct --key or AIMASS_KEY" in str(result.exception)
    assert key not in str(result.exception)
