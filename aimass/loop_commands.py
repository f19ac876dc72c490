"""The command line of the loop: how it stands, what has happened, and the hand on it."""

import uuid
from pathlib import Path
from typing import Annotated

import typer

from aimass.client import DEFAULT_ADDRESS, DEFAULT_MODEL
from aimass.console import (
    MOST_NUMBER,
    SHOW,
    Address,
    Contributor,
    Key,
    ModelName,
    PictureNumber,
    ShownIfNothingElse,
    out,
)

loop = typer.Typer(help="The loop that makes a model better from its use.", cls=ShownIfNothingElse)
delete = typer.Typer(help="Delete, and replace what has learnt from it.", no_args_is_help=True)
loop.add_typer(delete, name="delete")

Why = Annotated[str, typer.Option(help="Why; it is kept.")]
Candidate = Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Version; 0 is the candidate.")]
RequestId = Annotated[
    str,
    typer.Option(
        help="Who asks twice with the same asks once; a new one if absent.",
        callback=lambda given: given or uuid.uuid4().hex,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask first.")]
As = Annotated[bool, typer.Option("--json", help="JSON.")]


@loop.command(SHOW)
def show_loop(
    model: ModelName = DEFAULT_MODEL, as_json: As = False, address: Address = DEFAULT_ADDRESS, key: Key = ""
) -> None:
    """Show how the loop of a model stands; `aimass loop MODEL` does the same."""
    from aimass.loop import show_loop

    show_loop(out, address, key, model, as_json)


@loop.command("events")
def show_events(
    model: ModelName = DEFAULT_MODEL,
    after: Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Only events of higher numbers.")] = 0,
    kind: Annotated[str, typer.Option(help="Only of this kind, such as cycle.ended.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens; Ctrl-C ends it.")] = False,
    as_json: As = False,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """List what has happened."""
    from aimass.loop import show_events

    show_events(out, address, key, model, after, kind, follow, as_json)


@loop.command("analysis")
def show_analysis(
    model: ModelName = DEFAULT_MODEL,
    to: Annotated[Path | None, typer.Option(help="Write it as a page to this file as well.")] = None,
    as_json: As = False,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Tell what is known of a model in use: accuracy, drift, quality, contributors, cost."""
    from aimass.loop import show_analysis

    show_analysis(out, address, key, model, to, as_json)


@loop.command("trigger")
def trigger(
    model: ModelName = DEFAULT_MODEL,
    reason: Why = "",
    strategy: Annotated[str, typer.Option(help="refit, incremental or scratch; the policy decides if absent.")] = "",
    request_id: RequestId = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Begin a cycle now."""
    from aimass.loop import trigger

    trigger(out, address, key, model, reason, strategy, request_id)


@loop.command("propose")
def propose(
    model: ModelName,
    version: Annotated[int, typer.Argument(min=1, max=MOST_NUMBER, help="A published version.")],
    not_worse: Annotated[bool, typer.Option("--not-worse", help="It need not be better: it is smaller, say.")] = False,
    request_id: RequestId = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Put a published version to the gate."""
    from aimass.loop import propose

    propose(out, address, key, model, version, not_worse, request_id)


@loop.command("promote")
def promote_candidate(
    model: ModelName = DEFAULT_MODEL,
    version: Candidate = 0,
    reason: Why = "",
    request_id: RequestId = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Let the candidate serve at once, past gate and trial."""
    from aimass.loop import promote

    promote(out, address, key, model, version, reason, request_id)


@loop.command("reject")
def reject_candidate(
    model: ModelName = DEFAULT_MODEL,
    version: Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Only if this is its candidate.")] = 0,
    reason: Why = "",
    request_id: RequestId = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """End the cycle under way, at whatever stage it is."""
    from aimass.loop import reject

    reject(out, address, key, model, version, reason, request_id)


@loop.command("rollback")
def roll_back(
    model: ModelName = DEFAULT_MODEL,
    reason: Why = "",
    request_id: RequestId = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Let the version serve again that did before the last promotion."""
    from aimass.loop import roll_back

    roll_back(out, address, key, model, reason, request_id)


@loop.command("trace")
def trace(
    prediction_id: Annotated[str, typer.Argument(help="Of a captured prediction.")],
    count: Annotated[int, typer.Option(min=1, max=100, help="How many samples.")] = 10,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Follow a prediction to the samples that the version had learnt from."""
    from aimass.provenance import trace

    trace(out, address, key, prediction_id, count)


@delete.command("sample")
def delete_sample(
    number: PictureNumber,
    yes: Yes = False,
    request_id: RequestId = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Delete a picture for good, and replace the versions that have learnt from it."""
    from aimass.provenance import delete_sample

    yes or typer.confirm(f"Delete picture {number} for good?", abort=True)
    delete_sample(out, address, key, number, request_id)


@delete.command("contributor")
def delete_contributor(
    contributor: Contributor,
    yes: Yes = False,
    request_id: RequestId = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Delete for good all that a contributor has given, and replace the versions that have learnt from it."""
    from aimass.provenance import delete_contributor

    yes or typer.confirm(f"Delete all that {contributor} has given, for good?", abort=True)
    delete_contributor(out, address, key, contributor, request_id)


@loop.command("deletion")
def show_deletion(
    deletion_id: Annotated[str, typer.Argument(help="As `aimass loop delete` printed it.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Tell how far a deletion is."""
    from aimass.provenance import show_deletion

    show_deletion(out, address, key, deletion_id)
