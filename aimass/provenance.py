"""`aimass loop trace`, `delete` and `deletion`: where an answer comes from, and how it is forgotten."""

import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aimass.console import say
from aimass.suite_access import open_suite
from aimass.trainer.v1 import loop_pb2 as pb


def trace(out: Console, address: str, key: str, prediction_id: str, count: int) -> None:
    """Print which samples, of those that the version had learnt, are most like a prediction's picture."""
    request = pb.TracePredictionRequest(prediction_id=prediction_id, nearest_count=count)
    with open_suite(address, key) as suite:
        answer = suite.ask(suite.loop.TracePrediction, request)
    say(out, f"{prediction_id} was answered by {answer.model}, version {answer.version} ({answer.graph_digest})")
    say(out, f"run {answer.run_id or 'unknown'}, samples {answer.snapshot or 'unknown'}")
    if answer.tainted:
        say(out, "that version has learnt what was deleted since")
    table = Table("sample", "label", "from", "came", "similarity", box=None)
    for each in answer.samples:
        table.add_row(
            escape(each.base_sample or str(each.sample_id)),
            escape(each.label),
            escape(each.contributor or ("base set" if each.base_sample else "owner")),
            each.time.ToDatetime().isoformat(" ", "minutes") if each.HasField("time") else "-",
            f"{each.similarity:.3f}",
        )
    if answer.samples:
        out.print(table)


def delete_sample(out: Console, address: str, key: str, number: int, request_id: str) -> None:
    """Delete a picture, and begin to replace what has learnt from it."""
    request = pb.DeleteSampleRequest(observation_id=number, request_id=request_id)
    with open_suite(address, key) as suite:
        _show(out, suite.ask(suite.loop.DeleteSample, request).deletion)


def delete_contributor(out: Console, address: str, key: str, contributor: str, request_id: str) -> None:
    """Delete all that a contributor has given, likewise."""
    request = pb.DeleteContributorRequest(contributor=contributor, request_id=request_id)
    with open_suite(address, key) as suite:
        _show(out, suite.ask(suite.loop.DeleteContributor, request).deletion)


def show_deletion(out: Console, address: str, key: str, deletion_id: str) -> None:
    """Print how far a deletion is."""
    with open_suite(address, key) as suite:
        _show(out, suite.ask(suite.loop.GetDeletion, pb.GetDeletionRequest(id=deletion_id)).deletion)


def _show(out: Console, deletion: pb.Deletion) -> None:
    state = pb.Deletion.State.Name(deletion.state).removeprefix("STATE_").lower()
    say(out, f"deletion {deletion.id} is {state}; `aimass loop deletion {deletion.id}` tells how far it is")
    if deletion.tainted_versions:
        by = f" by {deletion.deadline.ToDatetime().isoformat(' ', 'minutes')}" if deletion.HasField("deadline") else ""
        say(out, f"versions that have learnt it, which go{by}: {', '.join(map(str, deletion.tainted_versions))}")
    if deletion.tainted_runs:
        say(out, f"runs that have learnt it: {', '.join(deletion.tainted_runs)}")
    if deletion.report_json:
        out.print_json(json.dumps(json.loads(deletion.report_json)))
