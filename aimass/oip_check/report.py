"""Prints findings: a table for each area, what breaks whom, and one line that sums up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aimass.oip_check.finding import Finding, Verdict

STYLES = {Verdict.ok: "green", Verdict.breaks: "bold red", Verdict.warns: "yellow", Verdict.skipped: "dim"}


def print_findings(out: Console, findings: Sequence[Finding]) -> None:
    """Print all findings, grouped by area."""
    out.print(_table(findings))
    for each in findings:
        if each.clients:
            out.print(f"\n[{STYLES[each.verdict]}]{each.id}[/]: {escape(each.came)}", highlight=False, soft_wrap=True)
            out.print(f"  {escape(each.fact)}", highlight=False, soft_wrap=True)
            for client, consequence in each.clients.items():
                out.print(f"  [bold]{escape(client)}[/bold] {escape(consequence)}", highlight=False, soft_wrap=True)
    out.print(f"\n{escape(summary(findings))}", highlight=False, soft_wrap=True)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("verdict", "check", "asked", "came", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[1].no_wrap = True
    area = ""
    for each in findings:
        if each.area != area:
            area = each.area
            table.add_row("", f"[bold]{area}[/bold]")
        verdict = f"[{STYLES[each.verdict]}]{each.verdict}[/]"
        table.add_row(verdict, each.id, escape(each.asked), escape(each.came))
    return table


def summary(findings: Sequence[Finding]) -> str:
    """Return how many checks there were, and who breaks on what."""
    counts = Counter(each.verdict for each in findings)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    return f"{len(findings)} checks: {parts}; {_broken(findings) or 'nothing breaks'}"


def _broken(findings: Sequence[Finding]) -> str:
    hit: dict[str, list[str]] = {}
    for each in findings:
        if each.verdict is Verdict.breaks:
            for client in each.clients:
                hit.setdefault(client, []).append(each.id)
    return "; ".join(f"breaks {client} ({', '.join(ids)})" for client, ids in hit.items())


def document(address: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything, for a program to read."""
    return {
        "address": address,
        "breaks": any(each.verdict is Verdict.breaks for each in findings),
        "summary": summary(findings),
        "checks": [asdict(each) for each in findings],
    }
