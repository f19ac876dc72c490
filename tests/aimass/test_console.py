"""What commands print."""

import io

import pytest
from rich.table import Table

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
