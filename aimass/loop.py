"""`aimass loop`: how the loop of a model stands, what has happened in it, and the hand on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aimass.console import say
from aimass.suite_access import Suite, open_suite
from aimass.trainer.v1 import loop_pb2 as pb
from gateway.message_json import plain
from services.common.errors import InvalidInput

_PAGE = 1000
"""Events of one call; the contract allows no more."""


def show_loop(out: Console, address: str, key: str, model: str, as_json: bool) -> None:
    """Print how the loop of *model* stands."""
    with open_suite(address, key) as suite:
        loop = suite.ask(suite.loop.GetLoop, pb.GetLoopRequest(model=model))
    if as_json:
        print(json.dumps(plain(loop)))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in _standing(model, loop):
        table.add_row(f"[bold]{name}[/bold]", escape(text))
    out.print(table, highlight=False)


def show_events(
    out: Console, address: str, key: str, model: str, after: int, kind: str, follow: bool, as_json: bool
) -> None:
    """Print what has happened in the loop of *model*; *follow* goes on with what happens, until Ctrl-C."""
    with open_suite(address, key) as suite:
        try:
            for event in _follow(suite, model, after, kind) if follow else _list(suite, model, after, kind):
                if as_json:
                    print(json.dumps(plain(event)), flush=True)
                else:
                    say(out, _line(event))
        except KeyboardInterrupt:
            return


def show_analysis(out: Console, address: str, key: str, model: str, to: Path | None, as_json: bool) -> None:
    """Print what is known of *model* in use, or write it as a page to the file *to*.

    Raises:
        InvalidInput: *to* is a folder.
    """
    if to is not None and to.is_dir():
        raise InvalidInput(f"--to {str(to)!r} is a folder; name a file such as {to / 'analysis.html'}")
    with open_suite(address, key) as suite:
        found = suite.ask(suite.loop.GetAnalysis, pb.GetAnalysisRequest(model=model))
    if to is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(found.analysis_html)
    if as_json:
        print(found.analysis_json.decode())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in _analysis(json.loads(found.analysis_json)):
        table.add_row(f"[bold]{name}[/bold]", escape(text))
    out.print(table, highlight=False)
    if to is not None:
        say(out, f"page in {to}")


def trigger(out: Console, address: str, key: str, model: str, reason: str, strategy: str, request_id: str) -> None:
    """Begin a cycle by hand."""
    request = pb.TriggerCycleRequest(model=model, reason=reason, strategy=strategy, request_id=request_id)
    with open_suite(address, key) as suite:
        cycle = suite.ask(suite.loop.TriggerCycle, request).cycle
    say(out, f"{model}: cycle {_cycle(cycle)}")


def propose(out: Console, address: str, key: str, model: str, version: int, not_worse: bool, request_id: str) -> None:
    """Put a published version to the gate."""
    goal = pb.Cycle.GOAL_NOT_WORSE if not_worse else pb.Cycle.GOAL_BETTER
    request = pb.ProposeVersionRequest(model=model, version=version, goal=goal, request_id=request_id)
    with open_suite(address, key) as suite:
        cycle = suite.ask(suite.loop.ProposeVersion, request).cycle
    say(out, f"{model}: cycle {_cycle(cycle)}")


def promote(out: Console, address: str, key: str, model: str, version: int, reason: str, request_id: str) -> None:
    """Let the candidate, or *version* where that is not 0, serve at once."""
    with open_suite(address, key) as suite:
        number = version or _candidate(suite, model)
        request = pb.PromoteCandidateRequest(model=model, version=number, reason=reason, request_id=request_id)
        event = suite.ask(suite.loop.PromoteCandidate, request).event
    say(out, f"{model}: version {number} serves, event {event.number}")


def reject(out: Console, address: str, key: str, model: str, version: int, reason: str, request_id: str) -> None:
    """End the cycle under way, or only one whose candidate is *version* where that is not 0."""
    request = pb.RejectCandidateRequest(model=model, version=version, reason=reason, request_id=request_id)
    with open_suite(address, key) as suite:
        event = suite.ask(suite.loop.RejectCandidate, request).event
    say(out, f"{model}: cycle {event.cycle} is ended, event {event.number}")


def roll_back(out: Console, address: str, key: str, model: str, reason: str, request_id: str) -> None:
    """Let the version serve again that did before the last promotion."""
    request = pb.RollBackRequest(model=model, reason=reason, request_id=request_id)
    with open_suite(address, key) as suite:
        answer = suite.ask(suite.loop.RollBack, request)
    say(out, f"{model}: version {answer.stable_version} serves again, event {answer.event.number}")


def _candidate(suite: Suite, model: str) -> int:
    cycle = suite.ask(suite.loop.GetLoop, pb.GetLoopRequest(model=model)).cycle
    if not cycle.candidate_version:
        raise InvalidInput(f"model {model!r} has no candidate now; name a version with --version")
    return cycle.candidate_version


def _standing(model: str, loop: pb.GetLoopResponse) -> Iterator[tuple[str, str]]:
    yield model, "its loop is on" if loop.enabled else f"has no loop: {loop.disabled_reason}"
    yield "live accuracy", _accuracy(loop)
    if loop.reported_accuracy:
        yield "consent", f"{loop.reported_accuracy:.1%} of what users said; mostly they report mistakes"
    yield (
        "pictures",
        f"{loop.accepted_count} accepted, {loop.accepted_since_snapshot} of them new; {loop.pending_count} pending, "
        f"{loop.quarantined_count} in quarantine, {loop.proposed_count} with labels that the model does not know",
    )
    judged = loop.cycle.stage == pb.Cycle.STAGE_GATE and loop.cycle.HasField("gate")
    yield "would help the gate" if judged else "to review", f"{loop.to_judge_count}{' reviews' if judged else ''}"
    if loop.HasField("cycle"):
        yield "cycle", _cycle(loop.cycle)
        if loop.cycle.HasField("gate"):
            yield "gate", _gate(loop.cycle.gate)
    if loop.HasField("last_cycle"):
        yield "last cycle", _cycle(loop.last_cycle)
        if loop.last_cycle.HasField("refusal"):
            yield "refused", loop.last_cycle.refusal.message
    if loop.next_trigger:
        yield "waits for", loop.next_trigger
    for alarm in loop.alarms:
        yield "alarm", f"{alarm.time.ToDatetime().isoformat(' ', 'minutes')}  {alarm.message}"
    yield "policy", loop.policy_digest


def _analysis(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for each in document["accuracy"]:
        measured = "not measured yet"
        if each["estimate"] is not None:
            measured = f"{each['estimate']:.1%}, between {each['low']:.1%} and {each['high']:.1%}"
        lost = sum(each["dropped"].values())
        yield (
            f"version {each['version']}",
            f"{measured}; {each['judged']} of {each['drawn']} draws judged, {lost} lost"
            f"{'; it serves' if each['serves'] else ''}",
        )
    if document["reported"]:
        agreed, said = document["reported"]["agreed"], document["reported"]["said"]
        yield "consent", f"{agreed} of {said} words; mostly they report mistakes"
    for each in document["detectors"]:
        look = each["looks"][-1]
        state = "an alarm" if look["alarm"] else "no alarm"
        yield _words(each["kind"]), f"{state}; level {look['level']:.3g}, threshold {look['threshold']:.3g}"
    reasons = document["queue"]["quarantined"]
    if reasons:
        yield "quarantine", ", ".join(f"{count} {_words(reason)}" for reason, count in reasons.items())
    yield "to review", f"{document['queue']['to_review']}"
    if document["contributors"]:
        names = (f"{each['name']} {each['accuracy']:.0%} of {each['labels']}" for each in document["contributors"])
        yield "right", ", ".join(names)
    if document["cost"]:
        cost = document["cost"]
        verdict = "it pays" if cost["pays"] else "it does not pay"
        yield "next cycle", f"worth {cost['value']:.3g}, costs {cost['cost']:.3g}: {verdict}"


def _words(name: str) -> str:
    return name.replace("_", " ").lower()


def _accuracy(loop: pb.GetLoopResponse) -> str:
    if not loop.HasField("live_accuracy"):
        return "not measured yet: it takes reviews of pictures that were drawn, see `aimass review --order drawn`"
    live = loop.live_accuracy
    lost = f", {live.lost_draw_count} were lost" if live.lost_draw_count else ""
    return (
        f"{live.estimate:.1%}, between {live.low:.1%} and {live.high:.1%} with {live.confidence:.0%} at all times; "
        f"version {live.version}, {live.draw_count} reviewed draws{lost}"
    )


def _cycle(cycle: pb.Cycle) -> str:
    begun = cycle.start_time.ToDatetime().isoformat(" ", "minutes")
    stage = pb.Cycle.Stage.Name(cycle.stage).removeprefix("STAGE_").lower()
    if cycle.HasField("end_time"):
        stage = "promoted" if cycle.promoted else "ended without a new version"
    versions = (
        f"; version {cycle.candidate_version} against {cycle.champion_version}" if cycle.candidate_version else ""
    )
    goal = ", which must be no worse" if cycle.goal == pb.Cycle.GOAL_NOT_WORSE else ""
    run = f"; {cycle.strategy or 'run'} {cycle.run_id}" if cycle.run_id else ""
    return f"{cycle.number}, {stage}; since {begun}, by {cycle.reason}{versions}{goal if versions else ''}{run}"


def _gate(gate: pb.GateFigures) -> str:
    streams = (("hold-out", gate.holdout), ("live", gate.live))
    parts = [f"{name}: {each.wins} won, {each.losses} lost, {each.ties} the same" for name, each in streams]
    return f"evidence {gate.log_e:.2f} of {gate.log_e_bound:.2f}; {'; '.join(parts)}"


def _list(suite: Suite, model: str, after: int, kind: str) -> Iterator[pb.Event]:
    while True:
        request = pb.ListEventsRequest(model=model, after=after, page_size=_PAGE, kind=kind)
        events = suite.ask(suite.loop.ListEvents, request).events
        yield from events
        if len(events) < _PAGE:
            return
        after = events[-1].number


def _follow(suite: Suite, model: str, after: int, kind: str) -> Iterator[pb.Event]:
    for answer in suite.receive(suite.loop.WatchEvents, pb.WatchEventsRequest(model=model, after=after)):
        if kind in ("", answer.event.kind):
            yield answer.event


def _line(event: pb.Event) -> str:
    time = event.time.ToDatetime().isoformat(" ", "seconds")
    figures = "  ".join(f"{name}={value}" for name, value in _flat(json.loads(event.payload_json or "{}")))
    cycle = f"cycle {event.cycle}" if event.cycle else ""
    return f"{event.number:6}  {time}  {cycle:10}  {event.kind:22}  {figures}".rstrip()


def _flat(document: dict[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a document, and of those in it, by names with dots."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", f"{value:.4g}" if isinstance(value, float) else value
